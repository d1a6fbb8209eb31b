// Charts of the last 15 minutes: one per kind, with the routes stacked.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { clock, perSecond, rate } from "./format.js";
import { KINDS, stack } from "./history.js";

const HEIGHT = 132;
// On a phone: a line without axes.
const SMALL_HEIGHT = 56;
const isSmall = () => matchMedia("(max-width: 720px)").matches;
const TITLES = {
  upload_bytes_per_second: "Upload",
  download_bytes_per_second: "Download",
  requests_per_second: "Requests",
  errors_per_second: "Errors",
};
const isBytes = (kind) => kind.endsWith("bytes_per_second");
const show = (kind, value) => (isBytes(kind) ? rate(value) : `${perSecond(value)}/s`);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export const MAX_COLORS = 8;
export const colorOf = (index) => `var(--route-${index % MAX_COLORS})`;

export function Charts({ history, totals, names, colors }) {
  return html`<div class="charts">
    ${KINDS.map(
      (kind) => html`<${Card} key=${kind} kind=${kind} now=${totals[kind]} history=${history} names=${names} colors=${colors} />`,
    )}
  </div>`;
}

function Card({ kind, now, history, names, colors }) {
  const [pointed, setPointed] = useState(null);
  const peak = Math.max(0, ...(stack(history, kind, names)[1] ?? []).filter((value) => value !== null));
  const isBad = kind === "errors_per_second" && now > 0;
  return html`<section class="card chart" aria-label=${TITLES[kind]}>
    <h3>${TITLES[kind]}</h3>
    <p class=${isBad ? "figure bad" : "figure"} data-kind=${kind}>${show(kind, now)}</p>
    <p class="pointed">${pointed ?? `peak ${show(kind, peak)}`}</p>
    <${Plot} kind=${kind} history=${history} names=${names} colors=${colors} onPoint=${setPointed}
      label=${`${TITLES[kind]}: now ${show(kind, now)}, peak of the last 15 minutes ${show(kind, peak)}`} />
  </section>`;
}

function Plot({ kind, history, names, colors, onPoint, label }) {
  const place = useRef(null);
  const plot = useRef(null);
  const scheme = useScheme();
  const key = names.join("\n");
  useEffect(() => {
    const element = place.current;
    plot.current = new uPlot(options(kind, names, colors, element.clientWidth, (text) => onPoint(text), history), [[]], element);
    const observer = new ResizeObserver(() => plot.current.setSize({ width: element.clientWidth, height: isSmall() ? SMALL_HEIGHT : HEIGHT }));
    observer.observe(element);
    return () => {
      observer.disconnect();
      plot.current.destroy();
    };
  }, [key, scheme]);
  useEffect(() => {
    plot.current.setData(stack(history, kind, names));
  });
  return html`<div class="plot" ref=${place} role="img" aria-label=${label}></div>`;
}

function options(kind, names, colors, width, onPoint, history) {
  const isPlain = isSmall();
  const grid = { stroke: css("--line"), width: 1 };
  const axis = { stroke: css("--muted"), grid, show: !isPlain, ticks: { show: false }, font: "11px system-ui, sans-serif" };
  const line = (name) => ({
    stroke: css(`--route-${colors.get(name) % MAX_COLORS}`),
    fill: `color-mix(in srgb, ${css(`--route-${colors.get(name) % MAX_COLORS}`)} 45%, ${css("--card")})`,
    width: 1,
    points: { show: false },
  });
  return {
    width,
    height: isPlain ? SMALL_HEIGHT : HEIGHT,
    padding: isPlain ? [2, 0, 0, 0] : [6, 6, 0, 0],
    legend: { show: false },
    cursor: { y: false, points: { show: false }, drag: { x: false, y: false }, sync: { key: "history" } },
    scales: {
      x: { range: () => shownTimes(history) },
      y: { range: (_, __, highest) => [0, niceTop(highest, isBytes(kind))] },
    },
    axes: [
      { ...axis, size: 20, gap: 3, incrs: [60, 120, 300], values: (_, times) => times.map((time) => clock(time * 1000).slice(0, 5)) },
      { ...axis, size: isBytes(kind) ? 62 : 44, gap: 4, splits: (_, __, ___, top) => [0, top / 2, top],
        values: (_, values) => values.map((value) => (isBytes(kind) ? rate(value) : `${+value.toPrecision(3)}/s`)) },
    ],
    series: [{}, ...[...names].reverse().map(line)],
    hooks: {
      setCursor: [
        (self) => {
          const index = self.cursor.idx;
          const isInside = index !== null && index !== undefined && self.cursor.left >= 0;
          onPoint(isInside ? pointed(kind, history, names, index) : null);
        },
      ],
    },
  };
}

// The last 15 minutes; of a gateway that is younger, its life, but at least two minutes.
function shownTimes(history) {
  const now = Date.now() / 1000;
  return [Math.max(now - 900, Math.min(history.times[0] ?? now, now - 120)), now];
}

function pointed(kind, history, names, index) {
  const values = names
    .map((name) => [name || "no route", history.routes.get(name)?.[kind][index] ?? 0])
    .filter(([, value]) => value)
    .sort((one, other) => other[1] - one[1])
    .slice(0, 2);
  const texts = values.map(([name, value]) => `${name} ${show(kind, value)}`);
  return [clock(history.times[index] * 1000), ...(texts.length ? texts : ["nothing"])].join(" · ");
}

// A round number at or above the highest value, so that the axis does not move all the time.
function niceTop(highest, areBytes) {
  const least = areBytes ? 1000 : 1;
  if (!(highest > least)) return least;
  const magnitude = 10 ** Math.floor(Math.log10(highest));
  return [1, 2, 4, 6, 8, 10].find((factor) => factor * magnitude >= highest) * magnitude;
}

// Colors in a canvas do not follow the style sheet.
function useScheme() {
  const query = matchMedia("(prefers-color-scheme: dark)");
  const [isDark, setDark] = useState(query.matches);
  useEffect(() => {
    const change = () => setDark(query.matches);
    query.addEventListener("change", change);
    return () => query.removeEventListener("change", change);
  }, []);
  return isDark;
}
