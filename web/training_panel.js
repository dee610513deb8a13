// @ts-check
/** Puts a panel on training nodes and feeds it: live, at the end of a node, and after the page was reloaded. */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { sentence } from "./ending.js";
import { findNode } from "./graph.js";
import { Panel } from "./panel.js";
import { loadWords, word } from "./words.js";

const NODES = ["RolloutTrainLoRA", "RolloutTrainSteps"];
const WIDTH = 340; // pixels; a node with less would break the lines of its panel

/** @type {Map<HostNode, Panel>} */
const panels = new Map();

const root = () => app.rootGraph ?? app.graph;

/** @param {string | number} id as the host names the node */
function panelOf(id) {
  const node = findNode(root(), id);
  return node ? panels.get(node) : undefined;
}

/** @param {string} run */
const samplesRoute = (run) => `/rollout_trainer/runs/${encodeURIComponent(run)}/samples`;

/** @param {string} run */
const filmRoute = (run) => `/rollout_trainer/runs/${encodeURIComponent(run)}/film`;

/** @type {import("./panel.js").Host} */
const host = {
  stop: (facts) => api.interrupt(facts.prompt_id ?? null),
  async ask({ node, prompt_id }, what) {
    const body = JSON.stringify({ node, prompt_id, what });
    const headers = { "Content-Type": "application/json" };
    await api.fetchApi("/rollout_trainer/ask", { method: "POST", headers, body });
  },
  async films(run) {
    const response = await api.fetchApi(filmRoute(run)).catch(() => null);
    return response?.ok ? response.json() : []; // the run may have been deleted
  },
  async samples(run) {
    const response = await api.fetchApi(samplesRoute(run)).catch(() => null);
    return response?.ok ? response.json() : [];
  },
  sample: (run, drawn, number) => api.apiURL(`${samplesRoute(run)}/${drawn.step}/${number}?version=${drawn.version}`),
  frame: (run, film, frame) => api.apiURL(`${filmRoute(run)}/${film.step}/${frame}?version=${film.version}`),
};

/** Show what the server remembers of the trainings of the workflow that is open. */
async function restore() {
  if (!panels.size) return;
  const query = new URLSearchParams({ workflow: String(root().id ?? "") });
  const response = await api.fetchApi(`/rollout_trainer/facts?${query}`);
  if (!response.ok) return;
  /** @type {Record<string, import("./panel.js").Facts>} */
  const newest = await response.json();
  for (const [id, facts] of Object.entries(newest)) panelOf(id)?.show(facts);
}

/**
 * The front end hides an error's sentence behind two clicks; ours say what to do.
 * @param {HostEvents["execution_error"]} error
 */
function tellError({ node_id, exception_message }) {
  const title = findNode(root(), node_id)?.title ?? word("failed");
  app.extensionManager.toast.add({ severity: "error", summary: title, detail: sentence(exception_message ?? ""), life: 20000 });
}

/**
 * Make a node large enough for its panel.
 * @param {HostNode} node
 */
function fit(node) {
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width, WIDTH), Math.max(node.size[1], height)]);
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
    api.addEventListener("execution_error", ({ detail }) => {
      panelOf(detail.node_id)?.end(detail.exception_message ?? "");
      if (detail.node_type?.startsWith("Rollout")) tellError(detail);
    });
    api.addEventListener("execution_interrupted", ({ detail }) => panelOf(detail.node_id)?.end());
  },

  nodeCreated(node) {
    if (!NODES.includes(node.comfyClass ?? "")) return;
    const panel = new Panel(word, host, () => fit(node));
    const options = { serialize: false, hideOnZoom: false, getMinHeight: () => panel.minHeight };
    const widget = node.addDOMWidget("rollout_panel", "rollout_panel", panel.element, options);
    widget.serialize = false; // neither in the workflow file, where widgets are stored by position, nor in the prompt
    panels.set(node, panel);
    const removed = node.onRemoved;
    node.onRemoved = function (...args) {
      panel.dispose();
      panels.delete(node);
      return removed?.apply(this, args);
    };
    fit(node);
  },

  afterConfigureGraph: restore,
});
