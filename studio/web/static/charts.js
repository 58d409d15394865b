// Line charts in the theme's colours (uPlot, which the page has to load before).

import { colour } from "./studio.js";

/**
 * A chart in `element`: series [{label, colour ("--series-1"), dash, width, alpha}], `draw(columns)` with uPlot's columns
 * [x, y1, y2 …]. It follows the element's width and the switch of the theme.
 */
export function lineChart(element, { series, xLabel, height = 230, time = false, logarithmic = false }) {
  let chart = null;
  let columns = [[]];

  const build = () => {
    chart?.destroy();
    const axis = { stroke: colour("--pico-muted-color"), grid: { stroke: colour("--grid"), width: 1 }, ticks: { stroke: colour("--grid") }, font: "12px system-ui, sans-serif" };
    chart = new uPlot({
      width: element.clientWidth || 400,
      height,
      cursor: { y: false },
      legend: { live: true },
      scales: { x: { time }, y: { distr: logarithmic ? 3 : 1 } },
      axes: [{ ...axis, label: xLabel, labelSize: 18, labelFont: "12px system-ui, sans-serif" }, { ...axis, size: 58, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : short(tick))) }],
      series: [
        { label: xLabel, value: (_, value) => (value === null ? "–" : time ? new Date(value * 1000).toLocaleTimeString() : `${value}`) },
        ...series.map((one) => ({
          label: one.label, stroke: withAlpha(colour(one.colour), one.alpha ?? 1), width: one.width ?? 2, dash: one.dash,
          spanGaps: true, points: { show: one.points ?? false, size: 5 }, value: (_, value) => (value == null ? "–" : short(value)),
        })),
      ],
    }, columns, element);
  };

  new ResizeObserver(() => {
    if (chart && element.clientWidth && chart.width !== element.clientWidth) chart.setSize({ width: element.clientWidth, height });
  }).observe(element);
  const redraw = () => { if (chart) build(); };
  document.addEventListener("theme", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  return {
    draw(next) {
      columns = next;
      if (chart) chart.setData(next); else build();
    },
  };
}

function short(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e5 || size < 1e-3) return value.toExponential(1);
  return `${Number(value.toPrecision(4))}`;
}

function withAlpha(text, alpha) {
  return alpha === 1 ? text : `color-mix(in srgb, ${text} ${alpha * 100}%, transparent)`;
}

/** TensorBoard's moving average, heavier for longer curves. */
export function smooth(values) {
  const weight = 1.8 * (1 / (1 + Math.exp(-0.05 * values.length)) - 0.5);
  let last = values[0];
  return values.map((value) => (last = last * weight + value * (1 - weight)));
}
