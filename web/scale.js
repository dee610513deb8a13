// @ts-check
/** The arithmetic of the loss chart: smoothing, axes, paths, and numbers as people read them. No DOM, no host. */

/** @typedef {(number | null)[]} Column values at the points of a curve; null where nothing was measured */

/**
 * Exponential moving average, corrected for its start; gaps stay gaps and weigh nothing.
 * @param {Column} values
 * @param {number} memory 0 (none) to 1: the share that a point keeps of the points before it
 * @returns {Column}
 */
export function smooth(values, memory) {
  let sum = 0;
  let weight = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = memory * sum + (1 - memory) * value;
    weight = memory * weight + (1 - memory);
    return sum / weight;
  });
}

/**
 * Least and greatest value of all columns, widened a little; on a log axis of the positive ones.
 * @param {Column[]} columns
 * @param {boolean} log
 * @returns {[number, number]}
 */
export function extent(columns, log) {
  let [low, high] = [Infinity, -Infinity];
  for (const column of columns)
    for (const value of column)
      if (value !== null && (!log || value > 0)) [low, high] = [Math.min(low, value), Math.max(high, value)];
  if (low > high) return log ? [0.1, 1] : [0, 1];
  if (log) return low === high ? [low / 2, high * 2] : [low / 1.05, high * 1.05];
  const margin = (high - low) * 0.05 || Math.abs(high) * 0.5 || 0.5;
  return [low >= 0 ? Math.max(0, low - margin) : low - margin, high + margin];
}

/**
 * A function from values to places between `from` and `to`; null where a log axis has no place.
 * @param {number} low
 * @param {number} high
 * @param {number} from
 * @param {number} to
 * @param {boolean} log
 * @returns {(value: number) => number | null}
 */
export function axis(low, high, from, to, log = false) {
  const f = log ? Math.log : (/** @type {number} */ v) => v;
  const span = f(high) - f(low) || 1;
  return (value) => (log && value <= 0 ? null : from + ((f(value) - f(low)) / span) * (to - from));
}

/**
 * Round values to write beside an axis, ascending, `most` of them at most.
 * @param {number} low
 * @param {number} high
 * @param {boolean} log
 * @param {number} most at least 2
 * @returns {number[]}
 */
export function ticks(low, high, log, most = 5) {
  if (log) {
    for (const parts of [[1, 2, 5], [1, 3], [1]]) {
      const found = logTicks(low, high, parts);
      if (found.length <= most && found.length >= 2) return found;
    }
    const decades = logTicks(low, high, [1]);
    if (decades.length > most) return decades.filter((_, i) => i % Math.ceil(decades.length / most) === 0);
  }
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough) ?? 10 * power;
  const first = Math.ceil(low / step - 1e-12);
  const last = Math.floor(high / step + 1e-12);
  return Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step);
}

/**
 * @param {number} low
 * @param {number} high
 * @param {number[]} parts of a decade
 */
function logTicks(low, high, parts) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    for (const part of parts) {
      const value = part * 10 ** power;
      if (value >= low && value <= high) found.push(value);
    }
  return found;
}

/**
 * The `d` of an SVG path through points; it goes straight over gaps.
 * @param {(number | null)[]} xs
 * @param {(number | null)[]} ys
 */
export function path(xs, ys) {
  let d = "";
  xs.forEach((x, i) => {
    const y = ys[i];
    if (x !== null && y !== null) d += `${d ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
  });
  return d;
}

/**
 * The newest value that was measured.
 * @param {Column} values
 */
export function newest(values) {
  return values.findLast((value) => value !== null) ?? null;
}

/**
 * A number in about three digits.
 * @param {number | null} value
 */
export function number(value) {
  if (value === null || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(1);
  return String(Number(value.toPrecision(3)));
}

/**
 * A duration as m:ss or h:mm:ss.
 * @param {number | null} seconds
 */
export function duration(seconds) {
  if (seconds === null || !Number.isFinite(seconds)) return "–";
  const all = Math.round(seconds);
  const parts = [Math.floor(all / 60) % 60, all % 60];
  if (all >= 3600) parts.unshift(Math.floor(all / 3600));
  return parts.map((part, i) => (i ? String(part).padStart(2, "0") : String(part))).join(":");
}

/**
 * An amount of memory, in units of 1024.
 * @param {number} amount in bytes
 */
export function bytes(amount) {
  const [size, unit] = amount < 2 ** 30 ? [amount / 2 ** 20, "MB"] : [amount / 2 ** 30, "GB"];
  return `${number(size)} ${unit}`;
}
