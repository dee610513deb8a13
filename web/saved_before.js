// @ts-check
/** Widgets that were added to a node later: in a workflow saved before, they mean what the node did then. */

import { app } from "../../scripts/app.js";

/**
 * What a widget means in a workflow that does not know it, as the node's definition says; undefined: its default.
 * @param {HostNode} node
 * @param {string} name
 * @returns {unknown}
 */
function before(node, name) {
  const inputs = /** @type {any} */ (node.constructor)?.nodeData?.input ?? {};
  const definition = inputs.optional?.[name] ?? inputs.required?.[name];
  return definition?.[1]?.saved_before;
}

/**
 * @param {HostNode} node
 * @param {unknown[]} values that the workflow holds, in the order of the widgets
 */
function keepMeaning(node, values) {
  const saved = (node.widgets ?? []).filter((widget) => widget.serialize !== false);
  for (const widget of saved.slice(values.length)) {
    const value = before(node, widget.name);
    if (value !== undefined) widget.value = value;
  }
}

app.registerExtension({
  name: "rollout_trainer.saved_before",

  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("Rollout")) return;
    const configured = node.onConfigure;
    node.onConfigure = /** @this {HostNode} */ function (/** @type {unknown[]} */ ...args) {
      const values = /** @type {any} */ (args[0])?.widgets_values;
      if (Array.isArray(values)) keepMeaning(node, values);
      return configured?.apply(this, args);
    };
  },
});
