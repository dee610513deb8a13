// @ts-check
/** Puts nodes that go on with a run into the open graph. Knows graphs, not the host. */

const TRAINERS = ["RolloutTrainLoRA", "RolloutInitTraining", "RolloutResumeTraining"];
const GAP = 60; // pixels between nodes
const TITLE = 30; // pixels above a node's position

const STAGE = "RolloutTrainSteps";
const SAVE = "RolloutSaveLoRA";
const MUTED = 2; // LiteGraph's mode "never"

/**
 * Let the graph go on with a run: Resume Training and Train Steps in the place of the node that trained it. Model and
 * data come from where that has them; what goes on with its state or its model goes on with the new one's; it is muted,
 * or Run would train it from the start once more. Where no such node is, nodes for model and data are added. Wired,
 * selected and in view; one step for undo.
 * @param {HostCanvas} canvas the host's, with the graph that is open
 * @param {(type: string) => HostNode} create a node
 * @param {{ name: string, folder: string, step: number, until: number, hosted: boolean }} run `until`: the steps that
 *   it is planned for, 0 if it has them; `hosted`: its model is one of ComfyUI's
 * @param {DOMRect} cover what part of the screen a sidebar covers
 * @returns {boolean} whether an old training was muted; else model and data were added
 */
export function addResume(canvas, create, { name, folder, step, until, hosted }, cover) {
  const graph = canvas.graph;
  const trainer = trainerOf(graph, name);
  const [x, y] = freePlace(canvas);
  canvas.emitBeforeChange();
  try {
    const loaders = trainer ? [] : addLoaders(graph, create, [x, y], hosted);
    const start = loaders.length ? x + Math.max(...loaders.map((node) => node.pos[0] + node.size[0] - x)) + GAP : x;
    const opened = put(graph, create("RolloutResumeTraining"), [start, y], { folder, step });
    const stage = put(graph, create(STAGE), [start + opened.size[0] + GAP, y], { until_step: until });
    opened.connect(0, stage, "run");
    for (const input of ["model", "data", "validation", "clip", "vae"]) {
      const from = trainer && origin(graph, trainer, input);
      from?.node.connect(from.slot, opened, input);
    }
    const [model, data] = loaders;
    model?.connect(0, opened, "model");
    data?.connect(0, opened, "data");
    if (trainer) takeOver(graph, trainer, stage);
    const added = [opened, stage];
    if (!targets(graph, stage).some(({ node }) => node.type === SAVE)) {
      added.push(put(graph, create(SAVE), [stage.pos[0] + stage.size[0] + GAP, y], { filename: name }));
      stage.connect(0, added[2], "run");
    }
    canvas.selectItems(added);
    bringIntoView(canvas, added, cover);
    canvas.setDirty(true, true);
    return Boolean(trainer);
  } finally {
    canvas.emitAfterChange();
  }
}

/**
 * The node that trained a run of that name, as far as names tell; else the first one that trains.
 * @param {HostGraph} graph
 * @param {string} name of the run
 */
function trainerOf(graph, name) {
  const live = graph.nodes.filter((node) => TRAINERS.includes(node.type) && node.mode !== MUTED && origin(graph, node, "model"));
  const names = (/** @type {HostNode} */ node) => {
    const given = node.widgets?.find((widget) => widget.name === "run_name" || widget.name === "folder")?.value;
    return typeof given === "string" && given !== "" && (name.startsWith(`${given}-`) || given.endsWith(`/${name}`));
  };
  return live.find(names) ?? live[0];
}

/**
 * Let `stage` give to others what a training gave that begins at `trainer`, and mute that.
 * @param {HostGraph} graph
 * @param {HostNode} trainer
 * @param {HostNode} stage its outputs are those of every training node
 */
function takeOver(graph, trainer, stage) {
  const old = [trainer];
  for (const node of old) {
    for (const { node: next, slot } of targets(graph, node)) {
      if (next.type === STAGE && slot === 0 && !old.includes(next)) old.push(next);
    }
  }
  for (const node of old) {
    for (const { node: target, slot, input } of targets(graph, node)) {
      if (!old.includes(target)) stage.connect(slot, target, input);
    }
  }
  for (const node of old) node.mode = MUTED;
}

/**
 * Where the wires of a node's outputs end, except outside a subgraph.
 * @param {HostGraph} graph
 * @param {HostNode} from
 * @returns {{ node: HostNode, input: string, slot: number }[]} `slot`: of the output
 */
function targets(graph, from) {
  return graph.nodes.flatMap((node) => (node.inputs ?? []).flatMap((input) => {
    const start = input.link == null ? null : origin(graph, node, input.name);
    return start?.node === from ? [{ node, input: input.name, slot: start.slot }] : [];
  }));
}

/**
 * Add nodes for a model and for data, which the user fills in: the run says what it was trained on, not where that lies.
 * @param {HostGraph} graph
 * @param {(type: string) => HostNode} create
 * @param {[number, number]} place
 * @param {boolean} hosted the model is one of ComfyUI's
 * @returns {HostNode[]} the one that gives the model, the one that gives the data, and those before them
 */
function addLoaders(graph, create, [x, y], hosted) {
  const under = (/** @type {HostNode} */ node) => node.pos[1] + node.size[1] + TITLE + GAP;
  const first = put(graph, create(hosted ? "CheckpointLoaderSimple" : "RolloutLoadDiffusers"), [x, y], {});
  const model = hosted ? put(graph, create("RolloutFromComfyModel"), [x, under(first)], {}) : first;
  if (hosted) ["model", "clip", "vae"].forEach((input, slot) => first.connect(slot, model, input));
  const pictures = put(graph, create("RolloutDatasetFromFolder"), [x, under(model)], {});
  const data = put(graph, create("RolloutEncodeDataset"), [x, under(pictures)], {});
  model.connect(0, data, "model");
  pictures.connect(0, data, "dataset");
  return [model, data, pictures, ...(hosted ? [first] : [])];
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
