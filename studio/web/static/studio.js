// What all pages share: the switches, requests with the token against forged ones, times in the reader's zone.

const root = new URL(document.baseURI).pathname;

/** fetch() with the token; throws an Error with the server's sentence if it refuses. The path is below the studio's root. */
export async function csrfFetch(path, options = {}) {
  const headers = new Headers(options.headers);
  headers.set("X-CSRF-Token", document.querySelector('meta[name="csrf-token"]').content);
  headers.set("Accept", headers.get("Accept") ?? "application/json");
  const response = await fetch(path, { ...options, headers });
  if (!response.ok) {
    const text = await response.text();
    let message = text;
    try {
      message = JSON.parse(text).error ?? text;
    } catch { /* not JSON: the text itself */ }
    throw new Error(message || `${response.status}`);
  }
  return response;
}

/** Show a sentence at the top of the page. */
export function showMessage(text, kind = "bad") {
  const line = document.createElement("p");
  line.className = `notice ${kind}`;
  line.textContent = text;
  document.getElementById("messages").replaceChildren(line);
  line.scrollIntoView({ block: "nearest" });
}

/** Follow a file of the server by events: onLines(list of lines), onReset(), onEnd(). Returns the EventSource. */
export function follow(path, { onLines, onReset = () => {}, onEnd = () => {} }) {
  const source = new EventSource(path);
  source.addEventListener("lines", (event) => onLines(JSON.parse(event.data)));
  source.addEventListener("reset", () => onReset());
  source.addEventListener("end", () => { source.close(); onEnd(); });
  return source;
}

/** A colour of the theme, for canvases. */
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function remember(name, value) {
  document.cookie = `${name}=${value}; path=${root}; max-age=31536000; samesite=lax`;
}

document.getElementById("theme")?.addEventListener("change", (event) => {
  remember(event.target.dataset.cookie, event.target.value);
  if (event.target.value === "auto") {
    document.documentElement.removeAttribute("data-theme");
  } else {
    document.documentElement.dataset.theme = event.target.value;
  }
  document.dispatchEvent(new CustomEvent("theme"));
});

// What has been typed survives the switch of the language.
const KEPT = "lensmith-kept-fields";

document.getElementById("language")?.addEventListener("change", (event) => {
  remember(event.target.dataset.cookie, event.target.value);
  const fields = [...document.querySelectorAll("main [name]")].map((field) => {
    if (field.type === "file" || field.type === "password" || field.type === "hidden") return null;
    return field.type === "checkbox" || field.type === "radio" ? field.checked : field.value;
  });
  sessionStorage.setItem(KEPT, JSON.stringify({ page: location.href, fields }));
  location.reload();
});

const kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "null");
sessionStorage.removeItem(KEPT);
if (kept?.page === location.href) {
  document.querySelectorAll("main [name]").forEach((field, index) => {
    const value = kept.fields[index];
    if (typeof value === "boolean") field.checked = value;
    else if (typeof value === "string") field.value = value;
  });
}

document.querySelector("[data-skip]")?.addEventListener("click", (event) => {
  event.preventDefault();
  document.getElementById("content").focus();
});

function localTimes(element) {
  const format = new Intl.DateTimeFormat(document.documentElement.lang, { dateStyle: "medium", timeStyle: "short" });
  for (const time of element.querySelectorAll("time[datetime]:not([data-local])")) {
    time.textContent = format.format(new Date(time.dateTime));
    time.dataset.local = "";
  }
}

localTimes(document);
document.addEventListener("htmx:afterSwap", (event) => localTimes(event.target));
document.addEventListener("htmx:beforeRequest", () => document.getElementById("messages").replaceChildren());
