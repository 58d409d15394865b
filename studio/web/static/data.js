// The page Data: files and folders that are dropped or chosen, uploaded a few at a time; small helps for the lists.

import { csrfFetch, showMessage } from "./studio.js";

const PARALLEL = 3;
const ARCHIVE = /\.(zip|tgz|tar\.(gz|bz2|xz))$/i;
const JUNK = /(^|\/)(\.|__MACOSX|Thumbs\.db$|desktop\.ini$)/;
let uploading = false;

/** All files below an entry of a drop, as [path, File]. */
async function filesOf(entry, folder = "") {
  const path = folder + entry.name;
  if (entry.isFile) {
    return [[path, await new Promise((resolve, reject) => entry.file(resolve, reject))]];
  }
  const reader = entry.createReader();
  const found = [];
  for (;;) { // it gives at most 100 at once
    const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!entries.length) return found;
    for (const inner of entries) found.push(...await filesOf(inner, `${path}/`));
  }
}

function nameFor(files) {
  const [path] = files[0];
  const stem = path.includes("/") ? path.split("/")[0] : files.length === 1 ? path.replace(ARCHIVE, "").replace(/\.[^.]*$/, "") : "pictures";
  return stem.normalize("NFC").replace(/[^\p{L}\p{N}_-]+/gu, "_").replace(/^[_-]+|[_-]+$/g, "").slice(0, 48) || "dataset";
}

/** PUT of one file; `onProgress` gets the bytes that were sent of it. */
function put(path, file, onProgress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("PUT", path);
    request.setRequestHeader("X-CSRF-Token", document.querySelector('meta[name="csrf-token"]').content);
    request.setRequestHeader("Accept", "application/json");
    request.upload.addEventListener("progress", (event) => onProgress(event.loaded));
    request.addEventListener("load", () => {
      if (request.status < 300) return resolve();
      let message = request.responseText;
      try { message = JSON.parse(message).error ?? message; } catch { /* the text itself */ }
      reject(new Error(message || `${request.status}`));
    });
    request.addEventListener("error", () => reject(new Error(`${file.name}: the connection broke off.`)));
    request.send(file);
  });
}

async function upload(zone, given) {
  const files = given.filter(([path]) => !JUNK.test(path));
  if (!files.length) return showMessage(zone.dataset.textNone);
  if (uploading) return;
  uploading = true;
  const panel = zone.querySelector("[data-upload]");
  const bar = panel.querySelector("progress");
  const status = panel.querySelector("[data-status]");
  const total = files.reduce((sum, [, file]) => sum + file.size, 0);
  const format = new Intl.NumberFormat(document.documentElement.lang, { maximumFractionDigits: 1 });
  const sent = new Map();
  let done = 0;
  const show = () => {
    const bytes = [...sent.values()].reduce((sum, value) => sum + value, 0);
    bar.value = total ? bytes / total : done / files.length;
    status.textContent = `${format.format(done)} / ${format.format(files.length)} · ${format.format(bytes / 1e6)} / ${format.format(total / 1e6)} MB`;
  };
  panel.hidden = false;
  zone.classList.add("busy");
  try {
    let name = zone.dataset.name;
    if (!name) {
      const body = new URLSearchParams({ source: "files", name: nameFor(files) });
      name = (await (await csrfFetch("data", { method: "POST", body })).json()).name;
      zone.dataset.name = name; // a second try goes on with it
    }
    const queue = [...files];
    const work = async () => {
      for (let next = queue.shift(); next; next = queue.shift()) {
        const [path, file] = next;
        const target = `data/${encodeURIComponent(name)}/files/${path.split("/").map(encodeURIComponent).join("/")}`;
        await put(target, file, (bytes) => { sent.set(path, bytes); show(); });
        sent.set(path, file.size);
        done += 1;
        show();
      }
    };
    await Promise.all(Array.from({ length: PARALLEL }, work));
    status.textContent = zone.dataset.textDone;
    await csrfFetch(`data/${encodeURIComponent(name)}/import`, { method: "POST", body: new URLSearchParams({ columns: "" }) });
    uploading = false;
    location.assign(`data/${encodeURIComponent(name)}`);
  } catch (error) {
    showMessage(error.message);
    panel.hidden = true;
  } finally {
    uploading = false;
    zone.classList.remove("busy");
  }
}

for (const zone of document.querySelectorAll("[data-drop]")) {
  zone.addEventListener("dragover", (event) => { event.preventDefault(); zone.classList.add("over"); });
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", async (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
    const found = entries.length ? (await Promise.all(entries.map((entry) => filesOf(entry)))).flat() : [...event.dataTransfer.files].map((file) => [file.name, file]);
    upload(zone, found);
  });
  for (const field of zone.querySelectorAll("[data-pick]")) {
    field.addEventListener("change", () => {
      upload(zone, [...field.files].map((file) => [file.webkitRelativePath || file.name, file]));
      field.value = "";
    });
  }
  for (const label of zone.querySelectorAll("label[role=button]")) {
    label.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); label.querySelector("input").click(); }
    });
  }
}

// A file that misses the zone must not replace the page.
for (const kind of ["dragover", "drop"]) {
  document.addEventListener(kind, (event) => { if (event.dataTransfer?.types.includes("Files")) event.preventDefault(); });
}

addEventListener("beforeunload", (event) => { if (uploading) event.preventDefault(); });

document.addEventListener("change", (event) => {
  if (event.target.matches("[data-all]")) {
    for (const box of document.querySelectorAll('#marks input[name="number"]')) box.checked = event.target.checked;
  }
});

document.addEventListener("click", (event) => {
  const bar = event.target.closest(".bar-button");
  if (bar) {
    const form = bar.closest("form");
    form.elements.min_tokens.value = bar.dataset.low;
    form.elements.max_tokens.value = bar.dataset.high;
    form.elements.max_tokens.dispatchEvent(new Event("change", { bubbles: true }));
  }
});

// In the mapping, a column has one use: choosing it for another takes it from the first; the table shows who has what.
const mapping = document.querySelector("[data-mapping]");
function showUses() {
  for (const head of mapping.querySelectorAll("th[data-column]")) {
    const use = [...mapping.querySelectorAll("[data-use]")].find((set) => set.querySelector("input:checked")?.value === head.dataset.column);
    head.dataset.used = use?.dataset.use ?? "";
  }
}
mapping?.addEventListener("change", (event) => {
  if (event.target.type !== "radio" || !event.target.value) return showUses();
  for (const other of mapping.querySelectorAll("input[type=radio]:checked")) {
    if (other !== event.target && other.value === event.target.value) {
      mapping.querySelector(`input[name="${other.name}"][value=""]`).checked = true;
    }
  }
  showUses();
});
if (mapping) showUses();

// Left and right go to the neighbours of a row, unless somebody is writing.
document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, textarea, select") || event.ctrlKey || event.metaKey || event.altKey) return;
  const rel = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
  document.querySelector(`a[rel="${rel}"]`)?.click();
});
