// @ts-check
/** The Recipe node's button: ordinary settings nodes in its place, with its values in their widgets. */

import { app } from "../../scripts/app.js";
import { RECIPES } from "./facts.js";
import { word } from "./words.js";

const TYPE = "RolloutRecipe";
const GAP = 40; // pixels between nodes
const TITLE = 30; // pixels above a node's position
/** Outputs of a recipe that are settings, in their order, and the nodes that make them. */
const SETTINGS = ["RolloutLoRASettings", "RolloutOptimizerSettings", "RolloutTimestepSettings", "RolloutLossSettings"];

/**
 * Inputs that are wired to an output.
 * @param {HostGraph} graph
 * @param {HostNode} node
 * @param {number} slot
 * @returns {{ target: HostNode, input: string }[]}
 */
function wired(graph, node, slot) {
  return graph.nodes.flatMap((target) =>
    (target.inputs ?? [])
      .filter((input) => {
        const link = target.getInputLink(target.findInputSlot(input.name));
        return String(link?.origin_id) === String(node.id) && link?.origin_slot === slot;
      })
      .map((input) => ({ target, input: input.name })),
  );
}

/**
 * Add settings nodes with a recipe's values below it, and let what was wired to it take them. One step for undo.
 * @param {HostNode} node the recipe
 */
function unfold(node) {
  const recipe = RECIPES[String(node.widgets?.find((widget) => widget.name === "recipe")?.value)];
  const { canvas } = app;
  const graph = canvas.graph;
  if (!recipe) return;
  canvas.emitBeforeChange();
  try {
    const [x, top] = node.pos;
    let y = top + node.size[1] + TITLE + GAP;
    for (const [slot, type] of SETTINGS.entries()) {
      const made = LiteGraph.createNode(type);
      made.pos = [x, y];
      graph.add(made);
      for (const widget of made.widgets ?? []) {
        const value = recipe[type]?.[widget.name];
        if (value === undefined) continue;
        widget.value = value;
        widget.callback?.(value);
      }
      for (const { target, input } of wired(graph, node, slot)) made.connect(0, target, input);
      y += made.size[1] + TITLE + GAP;
    }
    canvas.setDirty(true, true);
  } finally {
    canvas.emitAfterChange();
  }
}

app.registerExtension({
  name: "rollout_trainer.recipe",

  nodeCreated(node) {
    if (node.comfyClass !== TYPE) return;
    const button = node.addWidget?.("button", word("unfold"), null, () => unfold(node));
    if (button) button.serialize = false; // widgets are stored by position
  },
});
