// A gateway's page: its figures every two seconds, drawn as they come.

import { csrfFetch } from "./studio.js";
import { lineChart } from "./charts.js";

const gateway = document.getElementById("gateway");
const SECONDS = 2;
const KEPT = 450; // points: the last 15 minutes; the server keeps as many

if (gateway) start();

function start() {
  const text = (name) => gateway.dataset[`text${name[0].toUpperCase()}${name.slice(1)}`];
  const chart = (name, series) => lineChart(gateway.querySelector(`[data-chart="${name}"]`), { series, xLabel: text("time"), height: 190, time: true });
  const line = (name, colour) => ({ label: text(name), colour });
  const charts = {
    requests: chart("requests", [line("requests", "--series-1"), line("errors", "--series-3")]),
    first: chart("first", [line("first", "--series-2")]),
    queue: chart("queue", [line("running", "--series-1"), line("waiting", "--series-3")]),
  };
  const columns = { requests: [[], [], []], first: [[], []], queue: [[], [], []] };
  const push = (name, values) => {
    values.forEach((value, index) => {
      columns[name][index].push(value);
      if (columns[name][index].length > KEPT) columns[name][index].shift();
    });
  };
  const draw = () => Object.entries(charts).forEach(([name, drawn]) => drawn.draw(columns[name]));
  let before = null;
  let first = true;

  /** Take one point of the server's: sums since the gateway's start, at a time. */
  function take(point) {
    if (before && point.at > before.at) {
      const seconds = point.at - before.at;
      const gained = (name) => Math.max(0, point[name] - before[name]);
      const streams = gained("first_count");
      push("requests", [point.at, gained("requests") / seconds, gained("errors") / seconds]);
      push("first", [point.at, streams ? gained("first_sum") / streams : null]);
      push("queue", [point.at, point.running, point.waiting]);
    }
    before = point;
  }

  function show(figures) {
    const put = (name, value) => { gateway.querySelector(`[data-figure="${name}"]`).textContent = value; };
    for (const name of ["requests", "errors", "running", "waiting", "tokens"]) put(name, figures[name].toLocaleString());
    put("first", figures.first_count ? `${(figures.first_sum / figures.first_count).toFixed(2)} s` : "–");
  }

  async function look() {
    const state = await (await csrfFetch(`${gateway.dataset.now}${first ? "?history=true" : ""}`)).json();
    first = false;
    state.history.forEach(take);
    const badge = document.getElementById("phase");
    badge.textContent = state.title;
    badge.className = `state ${{ ready: "done", failed: "failed", stopped: "stopped" }[state.phase] ?? "running"}`;
    const message = document.getElementById("message");
    message.textContent = state.message;
    message.className = state.phase === "failed" ? "notice bad" : "notice";
    message.hidden = !state.message;
    document.getElementById("lines").textContent = state.lines.join("\n");
    if (state.phase === "ready") { take(state.figures); show(state.figures); }
    if (before) draw();
    return state.phase !== "stopped";
  }

  (async () => {
    for (let going = true; going;) {
      try { going = await look(); } catch { /* the studio is being restarted: ask again */ }
      await new Promise((resolve) => setTimeout(resolve, SECONDS * 1000));
    }
  })();

  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const program = document.querySelector(`[data-program="${button.dataset.copy}"]`);
      try {
        await navigator.clipboard.writeText(program.textContent);
        button.textContent = button.dataset.done;
      } catch { // over http from another machine: select it, Ctrl-C copies
        getSelection().selectAllChildren(program);
      }
    });
  }
}
