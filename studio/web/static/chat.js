// The page Chat: pictures from anywhere, one question to both sides, answers as they are made.

import { csrfFetch, showMessage } from "./studio.js";

const chat = document.getElementById("chat");

/** A text of the page with its {placeholders} filled. */
function text(name, values = {}) {
  const found = chat.dataset[`text${name[0].toUpperCase()}${name.slice(1)}`];
  return found.replace(/\{(\w+)\}/g, (_, key) => values[key] ?? "");
}

function element(tag, className = "", content = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.textContent = content; // never HTML: what a model writes is shown as it is
  return made;
}

function start() {
  const composer = document.getElementById("composer");
  const question = document.getElementById("question");
  const send = document.getElementById("send");
  const stop = document.getElementById("stop");
  const pictures = composer.querySelector(".pictures");
  const sides = [...document.querySelectorAll(".side")].map((side) => ({
    name: side.dataset.side, list: side.querySelector(".turns"), turns: [],
  }));
  let exchanges = []; // what was said, as the studio keeps it
  let images = [];
  let ready = false;
  let answering = null;

  const refresh = () => { send.disabled = !ready || answering !== null || (!question.value.trim() && !images.length); };

  function showPictures() {
    pictures.replaceChildren(...images.map((url, index) => {
      const item = element("li");
      const image = element("img");
      image.src = url;
      image.alt = `${text("picture")} ${index + 1}`;
      const remove = element("button", "plain", "×");
      remove.type = "button";
      remove.setAttribute("aria-label", `${text("remove")} ${index + 1}`);
      remove.addEventListener("click", () => { images.splice(index, 1); showPictures(); question.focus(); });
      item.append(image, remove);
      return item;
    }));
    refresh();
  }

  async function add(files) {
    for (const file of files) {
      if (!file.type.startsWith("image/")) { showMessage(`${file.name}: ${text("nopicture")}`); continue; }
      images.push(await new Promise((resolve, reject) => {
        const reader = new FileReader();
        reader.onload = () => resolve(reader.result);
        reader.onerror = () => reject(reader.error);
        reader.readAsDataURL(file);
      }));
    }
    showPictures();
  }

  function sampling() {
    const given = {};
    for (const field of document.querySelectorAll("#sampling input")) {
      if (field.value !== "" && !field.validity.badInput) given[field.name] = Number(field.value);
    }
    return given;
  }

  function showQuestion(side, turn) {
    side.list.querySelector(".hint")?.remove();
    const item = element("li", "user");
    if (turn.images.length) {
      const thumbs = element("div", "thumbs");
      for (const url of turn.images) {
        const image = element("img");
        image.src = url;
        image.alt = text("picture");
        thumbs.append(image);
      }
      item.append(thumbs);
    }
    item.append(element("span", "hidden", `${text("you")}: `), element("div", "text", turn.text));
    side.list.append(item);
    side.list.scrollTop = side.list.scrollHeight;
  }

  function showMaker(meta, event) {
    let said = text("unsaid", { model: event.model });
    if (event.weights) {
      const base = event.adapter ? event.weights.slice(0, -event.adapter.length - 1) : event.weights;
      said = text(event.adapter ? "adapter" : "plain", { model: base, adapter: event.adapter });
    }
    const maker = element("span", event.right ? "maker" : "maker wrong", said);
    if (!event.right) maker.append(` ${text("wrong")}`);
    meta.append(maker);
  }

  function showEnd(meta, event) {
    const seconds = (value) => (value === null ? "–" : value.toFixed(2));
    meta.append(element("span", "", text("times", {
      prompt: event.prompt_tokens ?? "–", tokens: event.tokens ?? "–", first: seconds(event.first),
      total: seconds(event.total), rate: event.rate === null ? "–" : event.rate.toFixed(1),
    })));
    if (event.cut) meta.append(element("span", "", text("cut")));
  }

  /** The place of an answer; what it is told is shown at once and gathered in `kept`. */
  function answerItem(side) {
    const item = element("li", "answer");
    const shown = element("div", "text");
    const meta = element("div", "meta");
    item.append(shown, meta);
    side.list.append(item);
    const kept = { text: "", events: [] };
    const fail = (message, lines = []) => {
      item.classList.add("bad");
      shown.dataset.waiting = "";
      meta.append(element("strong", "", message));
      if (lines.length) item.append(element("pre", "log", lines.join("\n")));
    };
    const take = (event) => {
      const following = side.list.scrollHeight - side.list.scrollTop - side.list.clientHeight < 60;
      if (event.kind === "text") { kept.text += event.text; shown.textContent = kept.text.trimStart(); } else kept.events.push(event);
      if (event.kind === "maker") showMaker(meta, event);
      else if (event.kind === "end") showEnd(meta, event);
      else if (event.kind === "stopped") meta.append(element("span", "", text("stopped")));
      else if (event.kind !== "text") fail(event.message, event.lines);
      if (following) side.list.scrollTop = side.list.scrollHeight;
    };
    return { shown, take, kept };
  }

  async function answer(side, signal) {
    const { shown, take, kept } = answerItem(side);
    shown.dataset.waiting = text("waiting");
    try {
      const body = { side: side.name, system: document.getElementById("system").value, turns: side.turns, sampling: sampling() };
      const response = await csrfFetch(chat.dataset.answers, {
        method: "POST", body: JSON.stringify(body), signal, headers: { "Content-Type": "application/json" },
      });
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        const lines = (rest + value).split("\n");
        rest = lines.pop();
        lines.filter(Boolean).forEach((line) => take(JSON.parse(line)));
      }
    } catch (error) {
      take(signal.aborted ? { kind: "stopped" } : { kind: "error", message: error.message });
    }
    shown.dataset.waiting = "";
    side.turns.push({ role: "assistant", text: kept.text });
    side.list.scrollTop = side.list.scrollHeight;
    return kept;
  }

  /** The studio keeps the conversation, so that a page that is opened anew shows it. */
  const keep = () => csrfFetch(chat.dataset.conversation, {
    method: "PUT", body: JSON.stringify({ exchanges }), headers: { "Content-Type": "application/json" },
  });

  async function restore() {
    exchanges = (await (await csrfFetch(chat.dataset.conversation)).json()).exchanges;
    for (const exchange of exchanges) {
      const turn = { role: "user", text: exchange.text, images: exchange.images };
      for (const side of sides.filter((one) => exchange.answers[one.name])) {
        const { text: said, events } = exchange.answers[side.name];
        side.turns.push(turn, { role: "assistant", text: said });
        showQuestion(side, turn);
        [{ kind: "text", text: said }, ...events].forEach(answerItem(side).take);
      }
    }
  }

  async function ask() {
    if (send.disabled) return;
    const turn = { role: "user", text: question.value.trim(), images };
    images = [];
    question.value = "";
    showPictures();
    answering = new AbortController();
    stop.hidden = false;
    refresh();
    for (const side of sides) { side.turns.push(turn); showQuestion(side, turn); }
    const exchange = { text: turn.text, images: turn.images, answers: {} };
    exchanges.push(exchange);
    // One after the other: together, each would wait for the other, and the times would be nobody's.
    for (const side of sides) {
      if (answering.signal.aborted) { side.turns.pop(); continue; }
      exchange.answers[side.name] = await answer(side, answering.signal);
      await keep().catch((error) => showMessage(error.message));
    }
    answering = null;
    stop.hidden = true;
    refresh();
    question.focus();
  }

  composer.addEventListener("submit", (event) => { event.preventDefault(); ask(); });
  question.addEventListener("input", refresh);
  question.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); ask(); }
  });
  stop.addEventListener("click", () => answering?.abort());
  document.getElementById("again").addEventListener("click", async () => {
    answering?.abort();
    exchanges = [];
    await keep().catch((error) => showMessage(error.message));
    location.reload();
  });

  const attach = composer.querySelector(".attach");
  const input = attach.querySelector("input");
  attach.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); input.click(); }
  });
  input.addEventListener("change", async () => { await add(input.files); input.value = ""; });
  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (files.length) { event.preventDefault(); add(files); }
  });
  document.addEventListener("dragover", (event) => { event.preventDefault(); composer.classList.add("over"); });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) composer.classList.remove("over"); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    composer.classList.remove("over");
    add([...event.dataTransfer.files]);
  });
  camera(document.getElementById("camera"), (url) => { images.push(url); showPictures(); });
  restore().catch((error) => showMessage(error.message)).then(() => watch((now) => { ready = now; refresh(); }));
}

/** A dialog with the camera's picture; `taken` gets a JPEG as a data: URI. */
function camera(button, taken) {
  const dialog = document.getElementById("shutter");
  const video = dialog.querySelector("video");
  const end = () => video.srcObject?.getTracks().forEach((track) => track.stop());
  button.addEventListener("click", async () => {
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      dialog.showModal();
    } catch { // no camera, no permission, or a page without https elsewhere than on this machine
      showMessage(text("nocamera"));
    }
  });
  dialog.addEventListener("close", end);
  dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
  dialog.querySelector("[data-take]").addEventListener("click", () => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    canvas.getContext("2d").drawImage(video, 0, 0);
    taken(canvas.toDataURL("image/jpeg", 0.92));
    dialog.close();
  });
}

/** Ask for the engine's state, often while it starts, now and then later. */
async function watch(changed) {
  const notice = document.getElementById("starting");
  const [title, message, log] = [notice.querySelector("strong"), notice.querySelector("span"), notice.querySelector("pre")];
  const badge = document.getElementById("phase");
  for (;;) {
    let phase = "starting";
    try {
      const state = await (await csrfFetch(chat.dataset.engine)).json();
      phase = state.phase;
      title.textContent = state.title;
      message.textContent = state.message;
      log.textContent = state.lines.join("\n");
      log.hidden = !state.lines.length;
      badge.textContent = state.title;
      badge.className = `state ${{ ready: "done", failed: "failed", stopped: "stopped", none: "stopped" }[phase] ?? "running"}`;
      notice.className = phase === "failed" ? "notice bad" : "notice";
      notice.hidden = phase === "ready";
      if (phase === "stopped" || phase === "none") { location.reload(); return; }
    } catch (error) {
      title.textContent = error.message;
      notice.hidden = false;
    }
    changed(phase === "ready");
    await new Promise((resolve) => setTimeout(resolve, phase === "ready" ? 4000 : 700));
  }
}

if (chat) start();
