// @ts-check
/**
 * Widgets that most people never touch, which a node's definition names: a node opens without those that stand at their
 * default. Nodes 2.0 has a button for them; the classic canvas gets one here.
 */

import { app } from "../../scripts/app.js";
import { allNodes } from "./graph.js";
import { word } from "./words.js";

const BUTTON = "rollout_more";
const TOLERANCE = 40; // pixels: a node hardly higher than its widgets need was not made so by hand

/** Whether Nodes 2.0 draws the nodes: it then hides what is advanced by itself. */
const drawnByVue = () => Boolean(LiteGraph.vueNodesMode);

/**
 * What a node's definition says of a widget.
 * @param {HostNode} node
 * @param {string} name
 * @returns {{ advanced?: boolean, default?: unknown }}
 */
function said(node, name) {
  const inputs = /** @type {any} */ (node.constructor)?.nodeData?.input ?? {};
  return (inputs.required?.[name] ?? inputs.optional?.[name])?.[1] ?? {};
}

/** @type {WeakMap<HostNode, () => [number, number]>} */
const measures = new WeakMap();

/**
 * The least size of a node, by all of its widgets that are not hidden.
 * @param {HostNode} node
 */
const measured = (node) => (measures.get(node) ?? node.computeSize).call(node);

/** @param {HostNode} node */
const advancedOf = (node) => (node.widgets ?? []).filter((widget) => said(node, widget.name).advanced);

/**
 * Whether somebody has chosen a widget's value or wired it: it then stays in sight.
 * @param {HostNode} node
 * @param {HostWidget} widget
 */
function chosen(node, widget) {
  const slot = node.findInputSlot?.(widget.name) ?? -1;
  const wired = slot >= 0 && node.inputs?.[slot]?.link != null;
  return wired || widget.value !== said(node, widget.name).default;
}

/**
 * Put what is advanced and not chosen out of sight, or into it if the node is to show all; the node's height follows.
 * @param {HostNode} node
 * @returns {number} the height that it needs
 */
function arrange(node) {
  const all = advancedOf(node);
  const rare = all.filter((widget) => !chosen(node, widget));
  const button = node.widgets?.find((widget) => widget.name === BUTTON);
  const before = measured(node)[1];
  for (const widget of all) {
    widget.hidden = !node.showAdvanced && rare.includes(widget);
    if (widget.options) widget.options.advanced = rare.includes(widget);
  }
  if (button) {
    button.hidden = rare.length === 0;
    button.label = node.showAdvanced ? word("fewerSettings") : word("moreSettings").replace("<n>", String(rare.length));
  }
  const needed = measured(node)[1];
  node.setSize([node.size[0], Math.max(node.size[1] + needed - before, needed)]);
  if (drawnByVue()) for (const widget of all) widget.hidden = false;
  if (drawnByVue() && button) button.hidden = true;
  node.setDirtyCanvas?.(true, true);
  return needed;
}

/**
 * Nodes 2.0 leaves them out of its drawing, not of the height that it asks for, which it does after a node was loaded.
 * @param {HostNode} node
 */
function measureWhatIsDrawn(node) {
  const measure = node.computeSize;
  measures.set(node, measure);
  node.computeSize = /** @this {HostNode} */ function (/** @type {[]} */ ...args) {
    const away = drawnByVue() && !this.showAdvanced ? advancedOf(this).filter((w) => !w.hidden && !chosen(this, w)) : [];
    for (const widget of away) widget.hidden = true;
    const size = measure.apply(this, args);
    for (const widget of away) widget.hidden = false;
    return size;
  };
}

/**
 * After the other canvas was chosen: the node keeps its height.
 * @param {HostNode} node
 */
function arrangeAgain(node) {
  const [width, height] = node.size;
  node.setSize([width, Math.max(height, arrange(node))]);
}

/**
 * The same after a workflow was loaded: a node that was saved as high as all its widgets gets the height of the few.
 * @param {HostNode} node
 */
function arrangeLoaded(node) {
  for (const widget of [...advancedOf(node), ...(node.widgets ?? []).filter(({ name }) => name === BUTTON)]) widget.hidden = false;
  const [width, height] = node.size;
  const madeForAll = Math.abs(height - measured(node)[1]) <= TOLERANCE;
  const needed = arrange(node);
  node.setSize([width, madeForAll ? needed : Math.max(height, needed)]);
}

/**
 * Put the button below the widgets that a workflow stores, above what else stands on the node.
 * @param {HostNode} node
 */
function placeButton({ widgets = [] }) {
  const at = widgets.findIndex(({ name }) => name === BUTTON);
  const below = widgets.findIndex((widget) => widget.name !== BUTTON && widget.serialize === false && widget.element);
  if (at >= 0 && below >= 0 && below < at) widgets.splice(below, 0, ...widgets.splice(at, 1));
}

/** @param {HostNode} node */
function toggle(node) {
  node.showAdvanced = !node.showAdvanced;
  arrange(node);
}

app.registerExtension({
  name: "rollout_trainer.advanced",

  setup() {
    // The other canvas hides them in its own way. Its switch is read after this event.
    app.ui?.settings?.addEventListener?.("Comfy.VueNodes.Enabled.change", () => {
      setTimeout(() => allNodes(app.rootGraph ?? app.graph).filter((node) => advancedOf(node).length).forEach(arrangeAgain), 0);
    });
  },

  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("Rollout") || advancedOf(node).length === 0) return;
    const button = node.addWidget?.("button", BUTTON, null, () => toggle(node));
    if (button) button.serialize = false; // widgets are stored by position
    if (button?.options) button.options.canvasOnly = true;
    placeButton(node);
    measureWhatIsDrawn(node);
    arrange(node);
    const configured = node.onConfigure;
    node.onConfigure = /** @this {HostNode} */ function (/** @type {unknown[]} */ ...args) {
      const result = configured?.apply(this, args);
      placeButton(this); // others may have added theirs since
      arrangeLoaded(this);
      return result;
    };
  },
});
