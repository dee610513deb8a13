// @ts-check
/** Puts nodes that go on with a run into the open graph. Knows graphs, not the host. */

const TRAINERS = ["RolloutTrainLoRA", "RolloutInitTraining", "RolloutResumeTraining"];
const GAP = 60; // pixels between nodes
const TITLE = 30; // pixels above a node's position

/**
 * Add Resume Training, Train Steps and Save LoRA, without which the host would run neither: wired, selected and in
 * view. Model and data come from where the graph's training node has them. One step for undo.
 * @param {HostCanvas} canvas the host's, with the graph that is open
 * @param {(type: string) => HostNode} create a node
 * @param {{ name: string, folder: string, step: number, until: number }} run `until`: the steps that it is planned for,
 *   0 if it has them
 * @param {DOMRect} cover what part of the screen a sidebar covers
 */
export function addResume(canvas, create, { name, folder, step, until }, cover) {
  const graph = canvas.graph;
  const trainer = graph.nodes.find((node) => TRAINERS.includes(node.type) && origin(graph, node, "model"));
  const [x, y] = freePlace(canvas);
  canvas.emitBeforeChange();
  try {
    const opened = put(graph, create("RolloutResumeTraining"), [x, y], { folder, step });
    const stage = put(graph, create("RolloutTrainSteps"), [x + opened.size[0] + GAP, y], { until_step: until });
    const saved = put(graph, create("RolloutSaveLoRA"), [stage.pos[0] + stage.size[0] + GAP, y], { filename: name });
    opened.connect(0, stage, "run");
    stage.connect(0, saved, "run");
    for (const input of ["model", "data"]) {
      const from = trainer && origin(graph, trainer, input);
      from?.node.connect(from.slot, opened, input);
    }
    canvas.selectItems([opened, stage, saved]);
    bringIntoView(canvas, [opened, stage, saved], cover);
    canvas.setDirty(true, true);
  } finally {
    canvas.emitAfterChange();
  }
}

/**
 * Where an input's wire comes from; null if it has none, or comes from outside a subgraph.
 * @param {HostGraph} graph
 * @param {HostNode} node
 * @param {string} name of the input
 */
function origin(graph, node, name) {
  const link = node.getInputLink(node.findInputSlot(name));
  const from = link && graph.getNodeById(link.origin_id);
  return from ? { node: from, slot: link.origin_slot } : null;
}

/**
 * Below all nodes, at the left end of them; in the middle of the view where there are none.
 * @param {HostCanvas} canvas
 * @returns {[number, number]}
 */
function freePlace(canvas) {
  const nodes = canvas.graph.nodes;
  if (!nodes.length) {
    const [left, top, width, height] = canvas.ds.visible_area;
    return [left + width / 4, top + height / 3];
  }
  const left = Math.min(...nodes.map((node) => node.pos[0]));
  const bottom = Math.max(...nodes.map((node) => node.pos[1] + (node.flags?.collapsed ? 0 : node.size[1])));
  return [left, bottom + TITLE + GAP];
}

/**
 * @param {HostGraph} graph
 * @param {HostNode} node
 * @param {[number, number]} place
 * @param {Record<string, string | number>} values of its widgets
 */
function put(graph, node, place, values) {
  node.pos = place;
  graph.add(node);
  for (const widget of node.widgets ?? []) {
    if (!(widget.name in values)) continue;
    widget.value = values[widget.name];
    widget.callback?.(widget.value);
  }
  return node;
}

/**
 * Move the view, and shrink it if need be, so that the nodes are seen beside what covers the canvas.
 * @param {HostCanvas} canvas
 * @param {HostNode[]} nodes from left to right, at one height
 * @param {DOMRect} cover a sidebar's place on the screen
 */
function bringIntoView({ canvas, ds }, nodes, cover) {
  const box = canvas.getBoundingClientRect();
  const isLeft = cover.left + cover.right < box.left + box.right;
  const left = isLeft ? Math.max(box.left, cover.right) : box.left;
  const right = isLeft ? box.right : Math.min(box.right, cover.left);
  const [first, last] = [nodes[0], nodes[nodes.length - 1]];
  const width = last.pos[0] + last.size[0] - first.pos[0];
  const height = Math.max(...nodes.map((node) => node.size[1]));
  ds.scale = Math.min(ds.scale, (right - left) / (width + 2 * GAP), box.height / (height + 2 * GAP));
  ds.offset[0] = ((left + right) / 2 - box.left) / ds.scale - first.pos[0] - width / 2;
  ds.offset[1] = box.height / 2 / ds.scale - first.pos[1] - height / 2;
}
