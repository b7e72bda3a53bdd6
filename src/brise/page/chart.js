// A line chart on a logarithmic axis: the evidence after each step, with the lines that decide. It is drawn as those of
// reports are, by the classes of report/components.css.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { count, short } from "./data.js";

const HEIGHT = 300, LEFT = 62, RIGHT = 14, TOP = 24, BOTTOM = 44;
const MOST = 1e6; // of what is drawn: what lies above cannot matter any more
const DASHES = ["", "7 4", "2 4"];

// `series` are {name, values}, `references` {value, name}. The cursor moves with the pointer and with the arrow keys.
export function EvidenceChart({ title, xs, xName, series, references, least = 1e-3 }) {
  const place = useRef(null), [width, setWidth] = useState(720), [index, setIndex] = useState(null);
  useEffect(() => {
    const sizes = new ResizeObserver(([entry]) => setWidth(Math.max(Math.round(entry.contentRect.width), 240)));
    sizes.observe(place.current);
    return () => sizes.disconnect();
  }, []);
  const last = xs.length - 1, at = Math.min(index ?? last, last);
  const { x, y, decades } = scales(xs, series, references, width, least);
  const words = `${count(xs[at])} ${xName}: ${series.map((line) => `${line.name} ${short(line.values[at])}`).join(", ")}`;
  const step = (event) => {
    const far = { ArrowLeft: -1, ArrowRight: 1, PageDown: -10, PageUp: 10, Home: -xs.length, End: xs.length }[event.key];
    if (!far) return;
    event.preventDefault();
    setIndex(Math.min(Math.max(at + far, 0), last));
  };
  const point = (event) => setIndex(nearest(xs, x.from(event.clientX - place.current.getBoundingClientRect().left)));
  return html`<div class="plot">
    ${series.length > 1 && html`<div class="legend" aria-hidden="true">${series.map((line, number) => html`
      <span class=${`key s${number + 1}`}><svg viewBox="0 0 32 8"><path class="curve" d="M1 4h30"
        stroke-dasharray=${DASHES[number]} /></svg>${line.name}</span>`)}</div>`}
    <div class="canvas" ref=${place} tabindex="0" role="slider" aria-label=${title} aria-valuemin="0" aria-valuemax=${last}
      aria-valuenow=${at} aria-valuetext=${words} onKeyDown=${step} onPointerMove=${point} onPointerLeave=${() => setIndex(null)}>
      <svg viewBox=${`0 0 ${width} ${HEIGHT}`} aria-hidden="true">
        ${decades.map(([value, name]) => html`<line class="grid" x1=${LEFT} x2=${width - RIGHT} y1=${y(value)} y2=${y(value)} />
          <text class="soft" x=${LEFT - 8} y=${y(value) + 4.5} text-anchor="end">${name}</text>`)}
        ${ticks(xs, width).map((value) => html`<text class="soft" x=${x(value)} y=${HEIGHT - BOTTOM + 18}
          text-anchor="middle">${count(value)}</text>`)}
        <text class="soft" x=${(LEFT + width) / 2} y=${HEIGHT - 6} text-anchor="middle">${xName}</text>
        <line class="axis" x1=${LEFT} x2=${width - RIGHT} y1=${HEIGHT - BOTTOM} y2=${HEIGHT - BOTTOM} />
        ${series.map((line, number) => html`<g class=${`s${number + 1}`}><path class="curve"
          stroke-dasharray=${DASHES[number]} d=${curve(xs, line.values, x, y)} /></g>`)}
        ${labels(references, y).map(({ value, name, top }) => html`
          <line class="reference" x1=${LEFT} x2=${width - RIGHT} y1=${y(value)} y2=${y(value)} />
          <text class="halo strong" x=${LEFT + 6} y=${top}>${name}</text>`)}
        ${index != null && html`<line class="cursor" x1=${x(xs[at])} x2=${x(xs[at])} y1=${TOP} y2=${HEIGHT - BOTTOM} />`}
        ${series.map((line, number) => html`<g class=${`s${number + 1}`}><circle class="solid" r="4"
          cx=${x(xs[at])} cy=${y(line.values[at])} /></g>`)}
      </svg></div>
    <p class="note read">${words}</p></div>`;
}

// Functions from values to places, and the powers of ten that are written beside the axis.
function scales(xs, series, references, width, least) {
  const values = [...series.flatMap((line) => line.values), ...references.map((one) => one.value)];
  const low = Math.floor(Math.log10(Math.max(Math.min(...values), least)));
  const high = Math.max(Math.ceil(Math.log10(Math.min(Math.max(...values), MOST))), low + 1);
  const first = xs[0], span = Math.max(xs[xs.length - 1] - first, 1), wide = width - LEFT - RIGHT;
  const x = (value) => LEFT + (wide * (value - first)) / span;
  x.from = (pixels) => first + (span * (pixels - LEFT)) / wide;
  const tall = HEIGHT - TOP - BOTTOM;
  const y = (value) => TOP + tall * (1 - (Math.log10(Math.min(Math.max(value, 10 ** low), 10 ** high)) - low) / (high - low));
  const every = Math.ceil((high - low) / 6), decades = [];
  for (let power = low; power <= high; power += every) decades.push([10 ** power, short(10 ** power)]);
  return { x, y, decades };
}

const curve = (xs, values, x, y) => xs.map((at, index) => (
  `${index ? "L" : "M"}${x(at).toFixed(1)} ${y(values[index]).toFixed(1)}`)).join("");

// Round numbers along the axis: 1, 2 or 5 times a power of ten apart.
function ticks(xs, width) {
  const first = xs[0], last = xs[xs.length - 1], raw = Math.max((last - first) / (width / 90), 1);
  const power = 10 ** Math.floor(Math.log10(raw)), every = [1, 2, 5, 10].find((times) => times * power >= raw) * power;
  const found = [];
  for (let at = Math.ceil(first / every) * every; at <= last; at += every) found.push(at);
  return found;
}

// Names above their lines; of two that are close, the lower one's stands below it.
function labels(references, y) {
  const ordered = [...references].sort((a, b) => b.value - a.value);
  return ordered.map((one, index) => ({
    ...one, top: index && y(one.value) - y(ordered[index - 1].value) < 20 ? y(one.value) + 15 : y(one.value) - 6 }));
}

function nearest(xs, value) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] < value) low = middle; else high = middle;
  }
  return value - xs[low] < xs[high] - value ? low : high;
}
