// @ts-check
/** Which settings have no effect at the values of the others, and what rollouts cost. No DOM, no host. */

/** @typedef {Record<string, any>} Values by widget; undefined where a wire brings the value */

const SETTINGS_WITHOUT_ROLLOUTS = ["probability", "ramp_steps", "prob_start", "prob_end", "start_step", "ramp_shape"];
const SETTINGS_OF_ROLLOUTS = ["sampler", "order", "strategy", "steps_per_trajectory", "target", "reuse"];
const CALLS_PER_STEP = { unipc: 1, euler: 1, dpm: 1, rk4: 4 };

/** @type {(sampler: string) => Record<string, string>} */
const order = (sampler) => (["euler", "rk4"].includes(sampler) ? { order: "noOrder" } : {});

/**
 * By node: from the widgets' values to the widgets without effect, each with the key of its reason.
 * @type {Record<string, (values: Values) => Record<string, string>>}
 */
const RULES = {
  RolloutScheduledSampling: (v) => {
    if (v.max_step_offset === 0) return all([...SETTINGS_WITHOUT_ROLLOUTS, ...SETTINGS_OF_ROLLOUTS], "rolloutsOff");
    return {
      ...(v.target === "solver_error" ? { order: "noOrderTarget" } : order(v.sampler)),
      ...(v.ramp_steps === 0 ? all(["prob_start", "prob_end", "ramp_shape"], "noRamp") : {}),
      ...(v.ramp_steps > 0 ? { probability: "noProbability" } : {}),
    };
  },
  RolloutSample: (v) => order(v.sampler),
  RolloutSampler: (v) => order(v.sampler),
  RolloutExposureBias: (v) => order(v.sampler),
  RolloutTimestepSettings: (v) => ({
    ...(["uniform", "shifted"].includes(v.distribution) ? all(["mean", "std"], "onlyLogitNormal") : {}),
    ...(["uniform", "logit_normal"].includes(v.distribution) ? { shift: "onlyShifted" } : {}),
  }),
  RolloutLossSettings: (v) => (v.loss === "mse" ? { huber_delta: "onlyHuber" } : {}),
  RolloutOptimizerSettings: (v) => ({
    ...(v.schedule === "constant" ? { final_rate: "noFinalRate" } : {}),
    ...(v.optimizer === "adafactor" ? all(["beta1", "beta2"], "noBetas") : {}),
  }),
  RolloutReflexFlow: (v) => (v.enabled === "off" ? all(["alpha", "beta1", "beta2", "fc_norm"], "reflexFlowOff") : {}),
  RolloutEncodeDataset: (v) => (v.caption_variants === 1 ? { keep_tags: "noVariants" } : {}),
  RolloutTrainLoRA: (v) => (v.save_every === 0 ? { keep: "noSaves" } : {}),
  RolloutTrainSteps: (v) => (v.until_step > 0 ? { steps: "noStepsUntil" } : {}),
  RolloutInitTraining: (v) => (v.save_every === 0 ? { keep: "noSaves" } : {}),
};

/**
 * @param {string[]} names
 * @param {string} reason
 */
function all(names, reason) {
  return Object.fromEntries(names.map((name) => [name, reason]));
}

/** @param {string} nodeType */
export function hasRules(nodeType) {
  return nodeType in RULES;
}

/**
 * @param {string} nodeType
 * @param {Values} values
 * @returns {Record<string, string>} widgets without effect, each with the key of its reason
 */
export function withoutEffect(nodeType, values) {
  return RULES[nodeType]?.(values) ?? {};
}

/**
 * Expected no-grad model evaluations per sample and step, at the run's highest probability; as
 * `training.rollout.expected_extra_forwards`, with which a test compares it.
 * @param {Values} v the widgets of RolloutScheduledSampling
 * @param {boolean} reflexflow whether ReflexFlow is on
 * @returns {number} NaN where a wire brings a value that it depends on
 */
export function expectedExtraForwards(v, reflexflow) {
  const probability = v.ramp_steps > 0 ? Math.max(v.prob_start, v.prob_end) : v.ramp_steps === 0 ? v.probability : NaN;
  const calls = CALLS_PER_STEP[/** @type {keyof typeof CALLS_PER_STEP} */ (v.sampler)];
  const weights = lengthWeights(v.max_step_offset, v.strategy);
  if (v.max_step_offset === 0) return 0;
  if (!weights || !v.target) return NaN;
  const total = weights.reduce((sum, w) => sum + w, 0);
  const rolled = 1 - weights[0] / total;
  const length = weights.reduce((sum, w, k) => sum + k * w, 0) / total / rolled;
  const own = v.target === "solver_error" ? (v.sampler === "rk4" ? 4 : calls && 2) : length * calls;
  return (probability * rolled * (own + (reflexflow ? 1 : 0))) / v.reuse;
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
    ...(v.sampler === "rk4" ? ["saveSolver"] : []),
    ...(own ? [] : ["saveLength"]),
    "saveProbability",
    ...(own || v.reuse > 3 ? [] : ["saveReuse"]),
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
