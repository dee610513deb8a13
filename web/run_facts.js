// @ts-check
/** What the run browser says of runs: search, choice, sizes, ages, settings in short. No DOM, no host. */

import { SOLVERS } from "./facts.js";

/**
 * A run in the list, as `training.runs.browse.Summary`.
 * @typedef {object} Run
 * @property {string} name
 * @property {number | null} step of the newest saved state
 * @property {number | null} planned
 * @property {number | null} loss
 * @property {number} size bytes
 * @property {number} modified seconds since 1970
 * @property {number | null} film step of the newest film
 * @property {string} model
 * @property {boolean} training
 */
/**
 * Of a run's settings, what is shown; as `TrainConfig`.
 * @typedef {object} Settings
 * @property {{ kind: string, rank: number, alpha: number }} lora
 * @property {{ name: string, lr: number, schedule: string }} optimizer
 * @property {number} batch_size
 * @property {number} accumulation
 * @property {number} seed
 * @property {Rollout} rollout
 */
/**
 * @typedef {object} Rollout
 * @property {number} max_step_offset
 * @property {number} [gamma]
 * @property {number} probability
 * @property {number} ramp_steps
 * @property {number} prob_start
 * @property {number} prob_end
 * @property {string} sampler
 * @property {number} order
 * @property {number} steps_per_trajectory
 * @property {string} target
 * @property {number} reuse
 * @property {{ enabled: string }} reflexflow
 */
/**
 * A run that is looked at, as `training.runs.browse.Details`; its settings are {} where they are not known.
 * @typedef {Run & {
 *   path: string, folder: string, hosted: boolean, steps: number[], settings: Settings | Record<string, never>,
 *   curve: import("./chart.js").Curve,
 * }} Details
 */
/** @typedef {(key: string) => string} Word in the user's language */

const UNITS = ["B", "kB", "MB", "GB", "TB"];
/** @type {[Intl.RelativeTimeFormatUnit, number][]} */
const AGES = [["year", 31556952], ["month", 2629746], ["day", 86400], ["hour", 3600], ["minute", 60]];

/**
 * The runs that have every word of `query` in their name or their model's.
 * @template {Run} T
 * @param {T[]} runs
 * @param {string} query
 */
export function matching(runs, query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  return runs.filter(({ name, model }) => {
    const text = `${name} ${model}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
}

/**
 * Who is chosen after `name` was: one, or with `add` a second one beside the first.
 * @param {string[]} chosen at most two
 * @param {string} name
 * @param {boolean} add
 */
export function choose(chosen, name, add) {
  if (!add) return [name];
  if (chosen.includes(name)) return chosen.length > 1 ? chosen.filter((own) => own !== name) : chosen;
  return [...chosen.slice(0, 1), name];
}

/** @param {number} bytes */
export function size(bytes) {
  const power = Math.min(UNITS.length - 1, Math.floor(Math.log10(Math.max(bytes, 1)) / 3));
  const value = bytes / 1000 ** power;
  return `${value.toFixed(power && value < 9.95 ? 1 : 0)} ${UNITS[power]}`;
}

/**
 * How long ago a moment was.
 * @param {number} moment seconds since 1970
 * @param {number} now
 * @param {string} locale
 */
export function ago(moment, now, locale) {
  const format = new Intl.RelativeTimeFormat(locale, { numeric: "auto", style: "short" });
  const seconds = Math.max(0, now - moment);
  const [unit, length] = AGES.find(([, length]) => seconds >= length) ?? ["second", 60];
  return format.format(unit === "second" ? 0 : -Math.floor(seconds / length), unit);
}

/**
 * Settings in short: keys of words, and texts.
 * @param {Details["settings"]} settings
 * @param {Word} word
 * @returns {[string, string][]}
 */
export function settingRows(settings, word) {
  if (!hasSettings(settings)) return [];
  const { lora, optimizer, rollout } = settings;
  /** @type {[string, string][]} */
  const rows = [
    ["runsAdapter", `${lora.kind}, ${word("runsRank")} ${lora.rank}, ${word("runsAlpha")} ${lora.alpha}`],
    ["runsOptimizer", `${optimizer.name}, ${optimizer.lr}, ${optimizer.schedule}`],
    ["runsBatch", settings.accumulation > 1 ? `${settings.batch_size} × ${settings.accumulation}` : `${settings.batch_size}`],
    ["runsSeed", `${settings.seed}`],
    ["runsRollouts", rollouts(rollout, word)],
  ];
  if (rollout.target === "mixflow") return [...rows, ["runsTarget", `mixflow ${rollout.gamma}`]];
  if (rollout.max_step_offset === 0) return rows;
  const solver = SOLVERS[rollout.sampler]?.hasOrder ? `${rollout.sampler} ${rollout.order}` : rollout.sampler;
  return [
    ...rows,
    ["runsSolver", `${solver}, 1/${rollout.steps_per_trajectory}`],
    ["runsTarget", rollout.reuse > 1 ? `${rollout.target}, ${word("runsReuse")} ${rollout.reuse}` : rollout.target],
    ["runsReflexFlow", rollout.reflexflow.enabled],
  ];
}

/**
 * Whether settings are known.
 * @param {Details["settings"]} settings
 * @returns {settings is Settings}
 */
function hasSettings(settings) {
  return "lora" in settings;
}

/**
 * Who is rolled out, and how far.
 * @param {Rollout} rollout
 * @param {Word} word
 */
function rollouts(rollout, word) {
  if (rollout.max_step_offset === 0 || rollout.target === "mixflow") return word("runsOff");
  const percent = (/** @type {number} */ share) => Math.round(share * 100);
  const ramp = `${percent(rollout.prob_start)} → ${percent(rollout.prob_end)}`;
  const chance = rollout.ramp_steps > 0 ? ramp : percent(rollout.probability);
  return word("runsUpTo").replace("<p>", `${chance} %`).replace("<n>", String(rollout.max_step_offset));
}

/**
 * The settings in which two runs differ: key, text of the first, text of the second.
 * @param {Details[]} runs two of them
 * @param {Word} word
 */
export function differences([first, second], word) {
  const [own, other] = [first, second].map(({ settings }) => new Map(settingRows(settings, word)));
  const keys = [...new Set([...own.keys(), ...other.keys()])];
  return keys.filter((key) => own.get(key) !== other.get(key)).map((key) => [key, own.get(key) ?? "–", other.get(key) ?? "–"]);
}
