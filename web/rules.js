// @ts-check
/** Which settings have no effect at the values of the others, and what rollouts cost. No DOM, no host. */

import { SOLVERS } from "./facts.js";

/**
 * What rules look at, by widget; undefined where a node has no such widget or a wire brings the value.
 * @typedef {{
 *   max_step_offset?: number, probability?: number, ramp_steps?: number, prob_start?: number, prob_end?: number,
 *   sampler?: string, strategy?: string, target?: string, reuse?: number, distribution?: string, loss?: string,
 *   schedule?: string, optimizer?: string, enabled?: string, caption_variants?: number, save_every?: number,
 *   until_step?: number, targets?: string, gamma?: number, guidance?: number, preserve?: string,
 * }} Values
 */
/** @typedef {{ [widget: string]: string }} Reasons key of the reason why a widget has no effect */

const SETTINGS_WITHOUT_ROLLOUTS = ["probability", "ramp_steps", "prob_start", "prob_end", "start_step", "ramp_shape"];
const SETTINGS_OF_ROLLOUTS = ["sampler", "order", "strategy", "steps_per_trajectory", "target", "reuse", "gamma", "guidance"];
const SETTINGS_OF_PRESERVE = ["preserve_weight", "preserve_rows", "preserve_steps"];
const SETTINGS_OF_STEPS = ["max_step_offset", "sampler", "order", "strategy", "steps_per_trajectory", "guidance"];

/** @param {string | undefined} sampler */
const solver = (sampler) => SOLVERS[sampler ?? ""];

/** @param {Values} values */
const order = ({ sampler }) => when(solver(sampler)?.hasOrder === false, ["order"], "noOrder");

/** @param {Values} v */
const ramp = (v) => ({
  ...when(v.ramp_steps === 0, ["prob_start", "prob_end", "ramp_shape"], "noRamp"),
  ...when(isPositive(v.ramp_steps), ["probability"], "noProbability"),
});

/** @param {Values} v */
const preserve = (v) => when(v.preserve !== undefined && !v.preserve.trim(), SETTINGS_OF_PRESERVE, "noPreserve");

/** @param {Values} v */
const rollouts = (v) => {
  const rolled = v.preserve?.trim() ? ["sampler", "order"] : []; // what preserve rolls out with
  const other = (/** @type {string} */ name) => !rolled.includes(name);
  if (v.target === "mixflow") return { ...when(true, SETTINGS_OF_STEPS.filter(other), "noStepsMixflow"), ...ramp(v) };
  if (v.max_step_offset === 0) {
    return when(true, [...SETTINGS_WITHOUT_ROLLOUTS, ...SETTINGS_OF_ROLLOUTS].filter(other), "rolloutsOff");
  }
  return {
    ...(v.target === "solver_error" ? when(!rolled.length, ["order"], "noOrderTarget") : order(v)),
    ...ramp(v),
    ...when(v.target !== undefined, ["gamma"], "onlyMixflow"),
    ...when(v.target !== undefined && v.target !== "residual", ["guidance"], "onlyResidual"),
  };
};

/**
 * By node: from the widgets' values to the widgets without effect, each with the key of its reason.
 * @type {{ [node: string]: ((values: Values) => Reasons) | undefined }}
 */
const RULES = {
  RolloutScheduledSampling: (v) => ({ ...rollouts(v), ...preserve(v) }),
  RolloutSample: order,
  RolloutSampler: order,
  RolloutExposureBias: order,
  RolloutTimestepSettings: ({ distribution }) => ({
    ...when(distribution === "uniform" || distribution === "shifted", ["mean", "std"], "onlyLogitNormal"),
    ...when(distribution !== undefined && distribution !== "shifted", ["shift"], "onlyShifted"),
  }),
  RolloutLoRASettings: (v) => when(Boolean(v.targets?.trim()), ["preset"], "targetsNamed"),
  RolloutLossSettings: (v) => when(v.loss === "mse", ["huber_delta"], "onlyHuber"),
  RolloutOptimizerSettings: (v) => ({
    ...when(v.schedule === "constant", ["final_rate"], "noFinalRate"),
    ...when(v.optimizer === "adafactor", ["beta1", "beta2"], "noBetas"),
  }),
  RolloutReflexFlow: (v) => when(v.enabled === "off", ["alpha", "beta1", "beta2", "fc_norm"], "reflexFlowOff"),
  RolloutEncodeDataset: (v) => when(v.caption_variants === 1, ["keep_tags"], "noVariants"),
  RolloutTrainLoRA: (v) => when(v.save_every === 0, ["keep"], "noSaves"),
  RolloutTrainSteps: (v) => when(isPositive(v.until_step), ["steps"], "noStepsUntil"),
  RolloutInitTraining: (v) => when(v.save_every === 0, ["keep"], "noSaves"),
};

/** Learning rates that a user has not chosen: the default of most optimizers, and of prodigy, which finds its own. */
const USUAL_RATE = 1e-4;
const PRODIGY_RATE = 1;

/**
 * The learning rate to put in the place of the one that another optimizer was set to, undefined where it should stay.
 * @param {string | undefined} optimizer chosen just now
 * @param {number | undefined} rate
 */
export function proposedRate(optimizer, rate) {
  const [from, to] = optimizer === "prodigy" ? [USUAL_RATE, PRODIGY_RATE] : [PRODIGY_RATE, USUAL_RATE];
  return rate === from ? to : undefined;
}

/**
 * @param {boolean} idle whether the widgets have no effect
 * @param {string[]} names of the widgets
 * @param {string} reason
 * @returns {Reasons}
 */
function when(idle, names, reason) {
  return idle ? Object.fromEntries(names.map((name) => [name, reason])) : {};
}

/** @param {number | undefined} value */
function isPositive(value) {
  return value !== undefined && value > 0;
}

/** @param {string | undefined} nodeType */
export function hasRules(nodeType) {
  return nodeType !== undefined && nodeType in RULES;
}

/**
 * The widgets without effect.
 * @param {string | undefined} nodeType
 * @param {Values} values
 */
export function withoutEffect(nodeType, values) {
  return RULES[nodeType ?? ""]?.(values) ?? {};
}

/**
 * Expected no-grad model evaluations per sample and step, at the run's highest probability; as
 * `training.rollout.expected_extra_forwards`, with which a test compares it.
 * @param {Values} v the widgets of RolloutScheduledSampling
 * @param {boolean} reflexflow whether ReflexFlow is on
 * @returns {number} NaN where a wire brings a value that it depends on
 */
export function expectedExtraForwards(v, reflexflow) {
  const { ramp_steps: ramp = NaN, prob_start: first = NaN, prob_end: last = NaN, reuse = NaN } = v;
  const probability = ramp > 0 ? Math.max(first, last) : ramp === 0 ? (v.probability ?? NaN) : NaN;
  const calls = solver(v.sampler)?.callsPerStep ?? NaN;
  const weights = lengthWeights(v.max_step_offset, v.strategy);
  if (v.max_step_offset === 0 || v.target === "mixflow") return 0;
  if (!weights || !v.target) return NaN;
  const total = weights.reduce((sum, w) => sum + w, 0);
  const rolled = 1 - weights[0] / total;
  const length = weights.reduce((sum, w, k) => sum + k * w, 0) / total / rolled;
  const own = v.target === "solver_error" ? Math.max(2, calls) : length * calls;
  const halves = (v.guidance ?? 1) > 1 ? 2 : 1;
  return (probability * rolled * (halves * own + (reflexflow ? 1 : 0))) / reuse;
}

/**
 * About how many times as long a step takes; as `training.rollout.step_time_factor`, with which a test compares it.
 * @param {number} extra forwards per sample
 * @param {boolean} checkpointing whether the training recomputes in its backward pass
 */
export function stepTimeFactor(extra, checkpointing) {
  return 1 + extra / (checkpointing ? 3 : 2);
}

/**
 * What makes rollouts cheaper at the present settings.
 * @param {Values} v the widgets of RolloutScheduledSampling
 * @returns {string[]} keys of words
 */
export function waysToSave(v) {
  const own = v.target === "solver_error"; // two steps of its own, whatever the length
  return [
    ...((solver(v.sampler)?.callsPerStep ?? 1) > 1 ? ["saveSolver"] : []),
    ...(own ? [] : ["saveLength"]),
    "saveProbability",
    ...(own || (v.reuse ?? 1) > 3 ? [] : ["saveReuse"]),
  ];
}

/**
 * Relative frequency of the lengths 0..longest; null where it is not known.
 * @param {number | undefined} longest
 * @param {string | undefined} strategy
 */
function lengthWeights(longest, strategy) {
  if (longest === undefined || strategy === undefined) return null;
  const rising = Array.from({ length: longest + 1 }, (_, k) => k + 1);
  if (strategy === "uniform") return rising.map(() => 1);
  return strategy === "biased_late" ? rising : rising.reverse();
}
