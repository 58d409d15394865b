// The curves and the log of runs, followed by events: what the page shows is in files, so it may be closed at any time.

import { follow } from "./studio.js";
import { lineChart, smooth } from "./charts.js";

const MOST_LINES = 2000; // of the log on the page; the whole one is a link away
const charts = document.getElementById("charts");

if (charts) {
  const names = JSON.parse(charts.dataset.runs);
  const records = names.map(() => new Map()); // of each run: step -> what the log says of it
  const drawn = [...charts.querySelectorAll("[data-chart]")].map((figure) => ({ figure, field: figure.dataset.chart, chart: null }));
  let pending = false;

  const draw = () => {
    pending = false;
    for (const one of drawn) drawChart(one, names, records);
    document.getElementById("no-curves").hidden = records.some((run) => run.size);
  };
  const later = () => {
    if (!pending) {
      pending = true;
      requestAnimationFrame(draw);
    }
  };

  names.forEach((name, index) => {
    const run = records[index];
    follow(`runs/${encodeURIComponent(name)}/records`, {
      onLines(lines) {
        for (const line of lines) {
          try {
            const record = JSON.parse(line.replace(/: (NaN|-?Infinity)/g, ": null"));
            run.set(record.current_steps, { ...run.get(record.current_steps), ...record });
          } catch { /* a line that a killed run left half written */ }
        }
        later();
      },
      onReset() {
        run.clear();
        later();
      },
      onEnd: () => document.body.dispatchEvent(new CustomEvent("run-changed")),
    });
  });
}

function drawChart(one, names, records) {
  const { figure, field } = one;
  const points = records.map((run) => [...run].filter(([, record]) => Number.isFinite(record[field])).sort((a, b) => a[0] - b[0]));
  if (!points.some((run) => run.length)) return;
  figure.hidden = false;
  const smoothed = field === "loss";
  if (!one.chart) {
    const series = names.flatMap((name, index) => {
      const own = { label: name, colour: `--series-${index + 1}`, points: field === "eval_loss" };
      return smoothed ? [{ ...own, width: 1, alpha: 0.4 }, { ...own, label: names.length > 1 ? name : figure.dataset.smooth }] : [own];
    });
    one.chart = lineChart(figure.querySelector(".plot"), { series, xLabel: figure.parentElement.dataset.step });
    if (smoothed && names.length > 1) figure.classList.add("paired");
  }
  const steps = [...new Set(points.flatMap((run) => run.map(([step]) => step)))].sort((a, b) => a - b);
  const columns = points.flatMap((run) => {
    const raw = new Map(run.map(([step, record]) => [step, record[field]]));
    const lines = [raw];
    if (smoothed) {
      const averaged = smooth([...raw.values()]);
      lines.push(new Map([...raw.keys()].map((step, index) => [step, averaged[index]])));
    }
    return lines.map((line) => steps.map((step) => line.get(step) ?? null));
  });
  one.chart.draw([steps, ...columns]);
}

const log = document.getElementById("log");

if (log?.dataset.follow) {
  follow(log.dataset.follow, {
    onLines(lines) {
      const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      const shown = (log.textContent + lines.map(plain).filter(Boolean).map((line) => `${line}\n`).join("")).split("\n");
      log.textContent = shown.slice(-MOST_LINES).join("\n");
      if (atEnd) log.scrollTop = log.scrollHeight;
    },
    onReset: () => { log.textContent = ""; },
    onEnd: () => document.body.dispatchEvent(new CustomEvent("run-changed")),
  });
}

/** A line without a terminal's colours. */
function plain(line) {
  return line.replace(/\u001b\[[0-9;?]*[A-Za-z]/g, "").trimEnd();
}
