// @ts-check
/** Settings nodes: widgets without effect are greyed out and say why; scheduled sampling says what it costs. */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { allNodes, widgetValues } from "./graph.js";
import { expectedExtraForwards, hasRules, proposedRate, stepTimeFactor, waysToSave, withoutEffect } from "./rules.js";
import { anyOf, labelOptions, word } from "./words.js";

const SAMPLING = "RolloutScheduledSampling";
const COSTING = ["RolloutReflexFlow", "RolloutTrainLoRA", "RolloutInitTraining"]; // the cost depends on them too
const SLOW = 5; // times the time of a plain step, above which the cost line warns
const COST_HEIGHT = 36; // pixels: two lines
const WARNING_HEIGHT = 92; // five lines, in any language
const PLAIN = { background: "", color: "var(--descrip-text, #999)" };
const WARNING = { background: "#ffe08a", color: "#3d2c00" }; // readable whatever the theme's nodes look like

/**
 * The cost line of each scheduled-sampling node.
 * @type {Map<HostNode, HTMLElement>}
 */
const costLines = new Map();

/**
 * What rules look at: the host gives numbers, texts and switches, each as its widget has them.
 * @param {HostNode} node
 */
const valuesOf = (node) => /** @type {import("./rules.js").Values} */ (widgetValues(node));

/** @param {HostNode} node */
function refresh(node) {
  const reasons = withoutEffect(node.comfyClass, valuesOf(node));
  for (const widget of node.widgets ?? []) {
    const reason = reasons[widget.name];
    if (Boolean(reason) === Boolean(widget.disabled) && !reason) continue;
    widget.disabled = Boolean(reason);
    widget.tooltip = reason ? word(reason) : undefined; // undefined: the front end's own, in the user's language
  }
  const line = costLines.get(node);
  if (line) showCost(line, valuesOf(node), usesReflexFlow(node));
  node.setDirtyCanvas?.(true, true);
}

/**
 * @param {HTMLElement} line
 * @param {import("./rules.js").Values} values
 * @param {boolean} reflexflow
 */
function showCost(line, values, reflexflow) {
  const forwards = expectedExtraForwards(values, reflexflow);
  const factor = stepTimeFactor(forwards, usesCheckpointing());
  const slow = factor > SLOW;
  const text = cost(forwards, factor);
  line.textContent = slow ? `\u26a0 ${warning(text, values)}` : text;
  Object.assign(line.style, slow ? WARNING : PLAIN);
  line.classList.toggle("rollout-trainer-warning", slow);
}

/**
 * @param {number} forwards
 * @param {number} factor
 */
function cost(forwards, factor) {
  if (Number.isNaN(forwards)) return "";
  if (forwards === 0) return word("noCost");
  return word("cost").replace("<n>", forwards.toFixed(forwards < 0.95 ? 2 : 1)).replace("<x>", factor.toFixed(1));
}

/**
 * @param {string} text
 * @param {import("./rules.js").Values} values
 */
function warning(text, values) {
  return word("costHigh").replace("<cost>", text).replace("<ways>", anyOf(waysToSave(values)));
}

/** Whether the graph's trainings recompute in their backward pass. */
function usesCheckpointing() {
  const trainings = allNodes(app.rootGraph ?? app.graph).map(widgetValues).filter((v) => "gradient_checkpointing" in v);
  return trainings.length > 0 && trainings.every((v) => v.gradient_checkpointing === true);
}

const ASLEEP = [2, 4]; // modes of a node that is muted, bypassed

/**
 * Whether rolled rows will get ReflexFlow, as far as the graph says; the kind of model is not known here.
 * @param {HostNode} node
 */
function usesReflexFlow(node) {
  const slot = node.findInputSlot?.("reflexflow") ?? -1;
  const origin = slot < 0 || !node.graph ? null : node.getInputNode(slot); // of a node in no graph front end 1.58 throws
  if (!origin || ASLEEP.includes(origin.mode ?? 0)) return false;
  return origin.comfyClass !== "RolloutReflexFlow" || valuesOf(origin).enabled !== "off";
}

/** Refresh what depends on other nodes. */
function refreshCosts() {
  for (const node of costLines.keys()) refresh(node);
}

/** @param {HostNode} node */
function addCostLine(node) {
  const line = document.createElement("div");
  line.style.cssText = "font: 11px/1.4 system-ui, sans-serif; text-align: center; border-radius: 4px; padding: 1px 4px;";
  line.className = "rollout-trainer-cost";
  line.setAttribute("role", "status");
  const height = () => (line.classList.contains("rollout-trainer-warning") ? WARNING_HEIGHT : COST_HEIGHT);
  const options = { serialize: false, hideOnZoom: false, getMinHeight: height, getMaxHeight: height };
  const widget = node.addDOMWidget("rollout_cost", "rollout_cost", line, options);
  widget.serialize = false; // widgets are stored by position
  node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
  costLines.set(node, line);
}

/**
 * Let choosing an optimizer set the learning rate that it wants, if the user has not set another.
 * @param {HostNode} node
 */
function proposeRates(node) {
  const optimizer = node.widgets?.find((widget) => widget.name === "optimizer");
  if (!optimizer) return;
  optimizer.callback = followed(optimizer.callback, () => {
    const rate = node.widgets?.find((widget) => widget.name === "learning_rate");
    const proposed = proposedRate(String(optimizer.value), Number(rate?.value));
    if (rate && proposed !== undefined) rate.value = proposed;
  });
}

/**
 * A method of the host's that calls another one afterwards.
 * @template {unknown[]} Arguments
 * @template Result
 * @param {((...args: Arguments) => Result) | undefined} before
 * @param {() => void} after
 * @returns {(...args: Arguments) => Result | undefined}
 */
function followed(before, after) {
  return /** @this {unknown} */ function (/** @type {Arguments} */ ...args) {
    const result = before?.apply(this, args);
    after();
    return result;
  };
}

app.registerExtension({
  name: "rollout_trainer.settings",

  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("Rollout")) return;
    labelOptions(node);
    if (!hasRules(node.comfyClass)) return;
    if (node.comfyClass === SAMPLING) addCostLine(node);
    if (node.comfyClass === "RolloutOptimizerSettings") proposeRates(node);
    const update = () => {
      refresh(node);
      if (COSTING.includes(node.comfyClass ?? "")) refreshCosts();
    };
    for (const widget of node.widgets ?? []) widget.callback = followed(widget.callback, update);
    node.onConnectionsChange = followed(node.onConnectionsChange, update);
    node.onConfigure = followed(node.onConfigure, update);
    node.onRemoved = followed(node.onRemoved, () => costLines.delete(node));
    refresh(node);
  },

  setup() {
    api.addEventListener("graphChanged", refreshCosts); // a node may have been muted or bypassed
  },

  afterConfigureGraph() {
    for (const node of allNodes(app.rootGraph ?? app.graph)) if (hasRules(node.comfyClass)) refresh(node);
  },
});
