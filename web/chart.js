// @ts-check
/** The loss chart: an SVG of one size, drawn anew from plain columns. Knows the DOM, not the host. */

import { axis, extent, number, path, smooth, ticks } from "./scale.js";

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { left: 38, right: 6, top: 6, bottom: 16 };
const MEMORY = 0.85;

/** Names of the lines, in the order in which they are drawn. `validation` has few points: dots, not smoothed. */
export const LINES = ["base", "fc", "adr", "validation"];

/** @typedef {Record<string, (number | null)[]> & { step: number[] }} Curve */

/**
 * Draw `curve` into `svg`, whatever was there before.
 * @param {SVGSVGElement} svg
 * @param {Curve} curve
 * @param {{ width: number, height: number, log: boolean, label: string }} options
 */
export function draw(svg, curve, { width, height, log, label }) {
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", label);
  const shown = LINES.filter((name) => curve[name]?.some((value) => value !== null));
  const smoothed = Object.fromEntries(
    shown.map((name) => [name, name === "validation" ? curve[name] : smooth(curve[name], MEMORY)]),
  );
  const [low, high] = extent(Object.values(smoothed), log);
  const last = curve.step.at(-1) ?? 1;
  const x = axis(0, last, MARGIN.left, width - MARGIN.right);
  const y = axis(low, high, height - MARGIN.bottom, MARGIN.top, log);
  svg.replaceChildren(frame(width, height));
  svg.append(grid(ticks(low, high, log), y, width), steps(ticks(0, last, false, 4), x, height));
  const lines = element("g", { "clip-path": "inset(0)" });
  const xs = curve.step.map(x);
  /** @param {(number | null)[]} values */
  const place = (values) => values.map((value) => (value === null ? null : y(value)));
  if (curve.base) lines.append(element("path", { class: "raw base", d: path(xs, place(curve.base)) }));
  for (const name of shown)
    if (name === "validation") lines.append(...dots(xs, place(curve[name])));
    else lines.append(element("path", { class: name, d: path(xs, place(smoothed[name])) }));
  svg.append(lines);
}

/**
 * @param {number} width
 * @param {number} height
 */
function frame(width, height) {
  const [x, y] = [MARGIN.left, MARGIN.top];
  return element("rect", { class: "frame", x, y, width: width - x - MARGIN.right, height: height - y - MARGIN.bottom });
}

/**
 * Lines across, with their values at the left.
 * @param {number[]} values
 * @param {(value: number) => number | null} y
 * @param {number} width
 */
function grid(values, y, width) {
  const group = element("g", {});
  for (const value of values) {
    const at = y(value) ?? 0;
    group.append(element("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: at, y2: at }));
    group.append(text(number(value), { x: MARGIN.left - 4, y: at + 3, "text-anchor": "end" }));
  }
  return group;
}

/**
 * Steps below the axis.
 * @param {number[]} values
 * @param {(value: number) => number | null} x
 * @param {number} height
 */
function steps(values, x, height) {
  const group = element("g", {});
  for (const value of values) group.append(text(String(value), { x: x(value) ?? 0, y: height - 4, "text-anchor": "middle" }));
  return group;
}

/**
 * @param {(number | null)[]} xs
 * @param {(number | null)[]} ys
 */
function dots(xs, ys) {
  return ys.flatMap((cy, i) => (cy === null ? [] : [element("circle", { class: "validation", cx: xs[i] ?? 0, cy, r: 2.5 })]));
}

/**
 * @param {string} tag
 * @param {Record<string, string | number>} attributes
 */
function element(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  return made;
}

/**
 * @param {string} content
 * @param {Record<string, string | number>} attributes
 */
function text(content, attributes) {
  const made = element("text", attributes);
  made.textContent = content;
  return made;
}
