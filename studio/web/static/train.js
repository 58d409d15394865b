// The page Train: the recipe, the command and the verdict follow the form.
import { csrfFetch, showMessage } from "./studio.js";

const form = document.getElementById("train");
const found = document.getElementById("found");
const PREVIEW_MS = 250; // after the last key, until the recipe is asked for
const CHECK_MS = 900; // after the last change, until the check is started
let asked = 0; // previews; an answer that was overtaken is dropped
let checked = ""; // digest of the recipe that the verdict is about
let named = Boolean(form?.elements.name.value); // whether somebody chose the name, else it is suggested
let previewTimer, checkTimer;

const body = () => new URLSearchParams(new FormData(form));

function showProblems(problems) {
  for (const place of form.querySelectorAll("[data-problem]")) {
    const text = problems[place.dataset.problem] ?? "";
    if (place.textContent !== text) place.textContent = text;
    place.hidden = !text;
    const field = form.elements[place.dataset.problem];
    if (field?.setAttribute) text ? field.setAttribute("aria-invalid", "true") : field.removeAttribute("aria-invalid");
  }
  const loose = Object.keys(problems).filter((name) => !form.querySelector(`[data-problem="${CSS.escape(name)}"]`));
  if (loose.length) {
    const general = form.querySelector('[data-problem=""]');
    general.textContent = [problems[""], ...loose.map((name) => `${name.replace("key.", "")}: ${problems[name]}`)].filter(Boolean).join(" ");
    general.hidden = false;
  }
}

function showSuggestions(suggested) {
  let changed = 0;
  for (const key of form.querySelectorAll("[data-key]")) {
    const field = key.querySelector("input, select");
    const value = suggested[key.dataset.key] ?? field.dataset.default;
    const first = field.options?.[0];
    if (first) first.textContent = first.dataset.text.replace("{value}", value === "null" ? "–" : value);
    else field.placeholder = value === "null" ? "–" : value;
    key.classList.toggle("set", field.value !== "");
    changed += field.value !== "";
  }
  const line = document.getElementById("changed");
  line.textContent = changed ? line.dataset.text.replace("{count}", changed) : "";
}

async function preview() {
  const number = ++asked;
  try {
    const given = body();
    if (!named) given.delete("name");
    const answer = await (await csrfFetch("train/preview", { method: "POST", body: given })).json();
    if (number !== asked) return;
    if (!named) form.elements.name.value = answer.name;
    document.getElementById("yaml").textContent = answer.yaml;
    document.getElementById("command").textContent = answer.command;
    showProblems(answer.problems);
    showSuggestions(answer.suggested);
    clearTimeout(checkTimer);
    if (Object.keys(answer.problems).length) {
      checked = "";
      const line = document.createElement("p");
      line.className = "quiet";
      line.textContent = document.getElementById("verdict").dataset.waiting;
      found.replaceChildren(line);
    } else if (answer.digest !== checked) {
      checkTimer = setTimeout(() => check(answer.digest), CHECK_MS);
    }
  } catch (error) {
    if (number === asked) showMessage(error.message);
  }
}

async function check(digest, measure = false) {
  checked = digest;
  try {
    const path = `train/check${measure ? "?measure=true" : ""}`;
    const answer = await csrfFetch(path, { method: "POST", body: body(), headers: { Accept: "text/html" } });
    const text = await answer.text();
    if (checked !== digest) return;
    found.innerHTML = text; // escaped by the server's templates
    htmx.process(found);
  } catch (error) {
    showMessage(error.message);
  }
}

function later() {
  clearTimeout(previewTimer);
  previewTimer = setTimeout(preview, PREVIEW_MS);
}

if (form) {
  form.addEventListener("input", (event) => {
    if (event.target.id === "find") return;
    if (event.target.name === "name") named = event.target.value !== "";
    later();
  });

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = document.getElementById("start");
    button.setAttribute("aria-busy", "true");
    button.disabled = true;
    try {
      const answer = await csrfFetch("train/start", { method: "POST", body: body() });
      location.assign(answer.url);
    } catch (error) {
      showMessage(error.message);
      preview();
      button.disabled = false;
    }
    button.removeAttribute("aria-busy");
  });

  form.addEventListener("click", async (event) => {
    const { copy, changes, measure } = event.target.dataset;
    if (copy) await navigator.clipboard?.writeText(document.getElementById(copy).textContent);
    if (measure !== undefined) check(checked, true);
    if (changes) {
      for (const [name, value] of Object.entries(JSON.parse(changes))) form.elements[name].value = value;
      preview();
    }
  });

  document.getElementById("find").addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase();
    for (const key of form.querySelectorAll(".key")) key.hidden = !key.textContent.toLowerCase().includes(words);
    for (const group of form.querySelectorAll(".group")) group.hidden = !group.querySelector(".key:not([hidden])");
  });

  preview();
}
