// @ts-check
/** A line on nodes that tell what they did, which front ends draw for their own nodes alone; and the colours of wires. */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { findNode } from "./graph.js";
import { told } from "./ending.js";

const HEIGHT = 54; // pixels: three lines, more are scrolled to
const WIDGET = "rollout_status";
/** Nodes that draw their text otherwise, or whose text is a report of many lines: of it, what was saved is told alone. */
const REPORTING = ["RolloutTrainLoRA", "RolloutTrainSteps", "RolloutInitTraining", "RolloutExposureBias", "RolloutPreview"];

/** By the type of a socket; `MODEL` and what is like it have the colours that the host gives its own. */
const COLOURS = {
  ROLLOUT_MODEL: "#b39ddb",
  "ROLLOUT_MODEL,MODEL": "#b39ddb",
  ROLLOUT_DATASET: "#64b5f6",
  ROLLOUT_DATA: "#ff6e6e",
  "ROLLOUT_DATA,ROLLOUT_DATASET": "#ff6e6e",
  ROLLOUT_RUN: "#ffb74d",
  ROLLOUT_SAMPLE_PROMPTS: "#80cbc4",
  ROLLOUT_LORA: "#81c784",
  ROLLOUT_OPTIMIZER: "#a1887f",
  ROLLOUT_TIMESTEPS: "#4dd0e1",
  ROLLOUT_LOSS: "#f06292",
  ROLLOUT_SCHEDULED_SAMPLING: "#dce775",
  ROLLOUT_REFLEXFLOW: "#aed581",
};

/**
 * Give a type a colour that stays: a palette that does not know the type sets it to "".
 * @param {Record<string, string>} colours
 * @param {string} type
 * @param {string} colour
 */
function keep(colours, type, colour) {
  let shown = colour;
  const set = (/** @type {string} */ given) => {
    shown = given || colour;
  };
  Object.defineProperty(colours, type, { get: () => shown, set, enumerable: true, configurable: true });
}

/**
 * @param {HostNode} node
 * @param {string} text
 */
function show(node, text) {
  let widget = node.widgets?.find(({ name }) => name === WIDGET);
  if (!widget) {
    const line = document.createElement("div");
    line.className = "rollout-trainer-status";
    line.setAttribute("role", "status");
    line.style.cssText = `font: 11px/1.45 system-ui, sans-serif; color: var(--descrip-text, #999); white-space: pre-line;
      overflow: auto; overflow-wrap: anywhere; max-height: ${HEIGHT}px; padding: 0 4px; user-select: text;`;
    const height = () => HEIGHT;
    const options = { serialize: false, hideOnZoom: false, getMinHeight: height, getMaxHeight: height };
    widget = node.addDOMWidget(WIDGET, WIDGET, line, options);
    widget.serialize = false; // widgets are stored by position
    const [width, least] = [node.size[0], node.computeSize()[1]];
    node.setSize([width, Math.max(node.size[1], least)]);
  }
  if (widget.element) widget.element.textContent = text;
  node.setDirtyCanvas(true, true);
}

app.registerExtension({
  name: "rollout_trainer.status",

  setup() {
    const style = document.createElement("style"); // of Nodes 2.0; the root's own style is set anew with every palette
    const rules = Object.entries(COLOURS).map(([type, colour]) => `--color-datatype-${CSS.escape(type)}: ${colour} !important;`);
    style.textContent = `:root { ${rules.join(" ")} }`;
    document.head.append(style);
    for (const colours of [app.canvas.default_connection_color_byType, LiteGraph.LGraphCanvas?.link_type_colors]) {
      for (const [type, colour] of Object.entries(COLOURS)) if (colours) keep(colours, type, colour);
    }
    api.addEventListener("executed", ({ detail }) => {
      const node = findNode(app.rootGraph ?? app.graph, detail?.display_node ?? detail?.node ?? "");
      if (!node?.comfyClass?.startsWith("Rollout")) return;
      const lines = told(detail.output?.text).split("\n");
      const saved = lines.filter((line) => line.startsWith("saved "));
      const text = (REPORTING.includes(node.comfyClass) ? saved : lines).join("\n");
      if (text) show(node, text);
      if (saved.length) app.refreshComboInNodes?.(); // loaders offer the new file
    });
  },
});
