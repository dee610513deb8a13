// @ts-check
/** Puts a panel on training nodes and feeds it: live, at the end of a node, and after the page was reloaded. */

// @ts-ignore: served by the host
import { app } from "../../scripts/app.js";
// @ts-ignore
import { api } from "../../scripts/api.js";
import { findNode } from "./graph.js";
import { MIN_HEIGHT, Panel } from "./panel.js";
import { loadWords, word } from "./words.js";

const NODES = ["RolloutTrainLoRA", "RolloutTrainSteps"];
const WIDTH = 340; // pixels; a node with less would break the lines of its panel

/** @type {Map<any, Panel>} */
const panels = new Map();

const root = () => app.rootGraph ?? app.graph;

/** @param {string | number} id as the host names the node */
const panelOf = (id) => panels.get(findNode(root(), id));

/** @param {import("./panel.js").Facts} facts */
const stop = (facts) => api.interrupt(facts.prompt_id ?? null);

/** Show what the server remembers of the trainings of the workflow that is open. */
async function restore() {
  if (!panels.size) return;
  const query = new URLSearchParams({ workflow: String(root().id ?? "") });
  const response = await api.fetchApi(`/rollout_trainer/facts?${query}`);
  if (!response.ok) return;
  for (const [id, facts] of Object.entries(await response.json())) panelOf(id)?.show(facts);
}

app.registerExtension({
  name: "rollout_trainer.panel",

  async init() {
    await loadWords();
  },

  setup() {
    api.addEventListener("rollout_trainer.progress", ({ detail }) => {
      if (!detail.workflow || detail.workflow === root().id) panelOf(detail.node)?.show(detail);
    });
    api.addEventListener("executed", ({ detail }) => {
      const facts = detail?.output?.rollout_trainer?.[0];
      if (facts) panelOf(detail.display_node ?? detail.node)?.show({ ...facts, state: "done" });
    });
    for (const event of ["execution_error", "execution_interrupted"])
      api.addEventListener(event, ({ detail }) => panelOf(detail.node_id)?.end());
  },

  nodeCreated(/** @type {any} */ node) {
    if (!NODES.includes(node.comfyClass)) return;
    const panel = new Panel(word, stop);
    const options = { serialize: false, hideOnZoom: false, getMinHeight: () => MIN_HEIGHT };
    const widget = node.addDOMWidget("rollout_panel", "rollout_panel", panel.element, options);
    widget.serialize = false; // neither in the workflow file, where widgets are stored by position, nor in the prompt
    panels.set(node, panel);
    const removed = node.onRemoved;
    node.onRemoved = function (/** @type {any[]} */ ...args) {
      panel.dispose();
      panels.delete(node);
      return removed?.apply(this, args);
    };
    const [width, height] = node.computeSize();
    node.setSize([Math.max(node.size[0], width, WIDTH), Math.max(node.size[1], height)]);
  },

  afterConfigureGraph: restore,
});
