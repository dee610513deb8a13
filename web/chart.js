// @ts-check
/** The loss chart: an SVG of one size, drawn anew from plain columns. Knows the DOM, not the host. */

import { LOSSES } from "./facts.js";
import { axis, extent, number, path, smooth, ticks } from "./scale.js";

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { left: 38, right: 6, top: 6, bottom: 16 };
const MEMORY = 0.85;
const HUES = ["#2f7df0", "#cf7408", "#b83fd0", "#129a55"]; // of the losses; the first two also tell runs apart

/** Colours and strokes, for the style sheet of whatever holds the chart. */
export const STYLE = `
${[...LOSSES, "run0", "run1"].map((name, i) => `.${name} { --hue: ${HUES[i % LOSSES.length]}; }`).join(" ")}
:is(${LOSSES.map((name) => `.${name}`).join(", ")}, .run0, .run1) { --own: color-mix(in srgb, var(--hue) 68%, var(--input-text, #ddd)); }
path { fill: none; stroke: var(--own); stroke-width: 1.6; }
path.raw { stroke-width: 1; opacity: 0.3; }
path.run1 { stroke-dasharray: 6 3; }
circle { fill: var(--own); }
.frame { fill: none; stroke: var(--border-color, #666); }
.grid { stroke: var(--border-color, #666); opacity: 0.35; }
.best { stroke: #129a55; stroke-width: 1.2; stroke-dasharray: 2 3; }
text { fill: var(--descrip-text, #999); font-size: 9px; }
`;

/** @typedef {Record<string, (number | null)[]> & { step: number[] }} Curve */
/** @typedef {{ width: number, height: number, log: boolean, label: string, mark?: number }} Options */
/**
 * @typedef {object} Line
 * @property {string} name its class
 * @property {number[]} step
 * @property {(number | null)[]} values
 * @property {boolean} dots few points, each a dot
 */

/**
 * Draw `curve` into `svg`, whatever was there before.
 * @param {SVGSVGElement} svg
 * @param {Curve} curve
 * @param {Options} options
 */
export function draw(svg, curve, options) {
  const lines = LOSSES.filter((name) => isMeasured(curve, name)).map((name) => line(curve, name, name));
  const raw = curve.base ? [{ name: "raw base", step: curve.step, values: curve.base, dots: false }] : [];
  drawLines(svg, lines, raw, options);
}

/**
 * Draw one line of several curves, with the classes run0, run1 ...
 * @param {SVGSVGElement} svg
 * @param {Curve[]} curves
 * @param {string} name of the line
 * @param {Options} options
 */
export function compare(svg, curves, name, options) {
  const lines = curves.map((curve, i) => line(curve, name, `run${i}`));
  drawLines(svg, lines, [], options);
}

/**
 * Whether anything was measured for a line.
 * @param {Curve} curve
 * @param {string} name
 */
export function isMeasured(curve, name) {
  return curve[name]?.some((value) => value !== null) ?? false;
}

/**
 * @param {Curve} curve
 * @param {string} name of its column
 * @param {string} own name of the line
 * @returns {Line}
 */
function line(curve, name, own) {
  const values = curve[name] ?? [];
  // Of the validation loss there are few points, and one point makes no line.
  const dots = name === "validation" || values.filter((value) => value !== null).length === 1;
  return { name: own, step: curve.step, values: dots ? values : smooth(values, MEMORY), dots };
}

/**
 * @param {SVGSVGElement} svg
 * @param {Line[]} lines
 * @param {Line[]} raw below the lines, and without a say in the range
 * @param {Options} options
 */
function drawLines(svg, lines, raw, { width, height, log, label, mark }) {
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", label);
  const [low, high] = extent(lines.map(({ values }) => values), log);
  const last = Math.max(1, ...[...raw, ...lines].map(({ step }) => step.at(-1) ?? 1));
  const x = axis(0, last, MARGIN.left, width - MARGIN.right);
  const y = axis(low, high, height - MARGIN.bottom, MARGIN.top, log);
  svg.replaceChildren(frame(width, height));
  svg.append(grid(ticks(low, high, log), y, width), steps(ticks(0, last, false, 4), x, height));
  const drawn = inside(width, height);
  for (const { name, step, values, dots } of [...raw, ...lines]) {
    const xs = step.map(x);
    const ys = values.map((value) => (value === null ? null : y(value)));
    if (dots) drawn.append(...points(name, xs, ys));
    else drawn.append(element("path", { class: name, d: path(xs, ys) }));
  }
  if (mark !== undefined) drawn.append(upright(x(mark) ?? 0, height));
  svg.append(drawn);
}

/**
 * A line from top to bottom: the best moment.
 * @param {number} x
 * @param {number} height
 */
function upright(x, height) {
  return element("line", { class: "best", x1: x, x2: x, y1: MARGIN.top, y2: height - MARGIN.bottom });
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
 * What is drawn in it ends at the frame: the raw line may leave the range of the smoothed ones.
 * @param {number} width
 * @param {number} height
 */
function inside(width, height) {
  const box = [MARGIN.left, MARGIN.top, width - MARGIN.left - MARGIN.right, height - MARGIN.top - MARGIN.bottom];
  const [x, y, w, h] = box;
  return element("svg", { x, y, width: w, height: h, viewBox: box.join(" ") });
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
 * @param {string} name
 * @param {(number | null)[]} xs
 * @param {(number | null)[]} ys
 */
function points(name, xs, ys) {
  return ys.flatMap((cy, i) => (cy === null ? [] : [element("circle", { class: name, cx: xs[i] ?? 0, cy, r: 2.5 })]));
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
