import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { addResume } from "../../web/resume.js";

const INPUTS = {
  RolloutTrainLoRA: ["model", "data"],
  RolloutInitTraining: ["model", "data"],
  RolloutResumeTraining: ["model", "data"],
  RolloutTrainSteps: ["run"],
  RolloutSaveLoRA: ["run"],
  RolloutSample: ["model"],
  RolloutEncodeDataset: ["model", "dataset"],
  RolloutFromComfyModel: ["model", "clip", "vae"],
};
const WIDGETS = {
  RolloutTrainLoRA: ["run_name"],
  RolloutResumeTraining: ["folder", "step"],
  RolloutTrainSteps: ["until_step"],
  RolloutSaveLoRA: ["filename"],
};

/** As much of a host's graph as the script asks for. */
let graph, canvas, changes;
beforeEach(() => {
  graph = {
    nodes: [],
    add(node) {
      node.id = graph.nodes.push(node);
    },
    getNodeById: (id) => graph.nodes.find((node) => node.id === id) ?? null,
  };
  changes = [];
  canvas = {
    graph,
    canvas: { getBoundingClientRect: () => ({ left: 0, right: 1000, height: 800 }) },
    ds: { scale: 1, offset: [0, 0], visible_area: [0, 0, 1000, 800] },
    emitBeforeChange: () => changes.push("before"),
    emitAfterChange: () => changes.push("after"),
    selectItems: (nodes) => (canvas.selected = nodes),
    setDirty() {},
  };
});

function create(type) {
  return {
    type,
    mode: 0,
    size: [200, 100],
    pos: [0, 0],
    inputs: (INPUTS[type] ?? []).map((name) => ({ name, link: null })),
    widgets: (WIDGETS[type] ?? []).map((name) => ({ name, value: "" })),
    findInputSlot(name) {
      return this.inputs.findIndex((input) => input.name === name);
    },
    getInputLink(slot) {
      return this.inputs[slot]?.link ?? null;
    },
    connect(slot, target, name) {
      target.inputs[target.findInputSlot(name)].link = { origin_id: this.id, origin_slot: slot };
    },
  };
}

function put(type, wires = {}, values = {}) {
  const node = create(type);
  graph.add(node);
  for (const [input, [from, slot]] of Object.entries(wires)) from.connect(slot, node, input);
  for (const widget of node.widgets) widget.value = values[widget.name] ?? "";
  return node;
}

const from = (node, input) => {
  const link = node.getInputLink(node.findInputSlot(input));
  return link && [graph.getNodeById(link.origin_id).type, link.origin_slot];
};
const cover = { left: 0, right: 300 };
const RUN = { name: "cat-0001", folder: "runs/cat-0001", step: -1, until: 300, hosted: false };
const resume = (more = {}) => addResume(canvas, create, { ...RUN, ...more }, cover);

test("what went on with the old training goes on with the resumed one, and the old one is muted", () => {
  const base = put("RolloutLoadDiffusers");
  const data = put("RolloutEncodeDataset", { model: [base, 0] });
  const train = put("RolloutTrainLoRA", { model: [base, 0], data: [data, 0] }, { run_name: "cat" });
  const save = put("RolloutSaveLoRA", { run: [train, 0] });
  const after = put("RolloutSample", { model: [train, 1] });
  const before = put("RolloutSample", { model: [base, 0] });
  assert.equal(resume(), true);
  const [opened, stage] = canvas.selected;
  assert.deepEqual(canvas.selected.map((node) => node.type), ["RolloutResumeTraining", "RolloutTrainSteps"]);
  assert.deepEqual([from(opened, "model"), from(opened, "data")], [["RolloutLoadDiffusers", 0], ["RolloutEncodeDataset", 0]]);
  assert.deepEqual([from(stage, "run"), from(save, "run"), from(after, "model")], [
    ["RolloutResumeTraining", 0], ["RolloutTrainSteps", 0], ["RolloutTrainSteps", 1],
  ]);
  assert.deepEqual(from(before, "model"), ["RolloutLoadDiffusers", 0]);
  assert.deepEqual(graph.nodes.filter((node) => node.mode === 2), [train]);
  assert.deepEqual(opened.widgets.map((w) => w.value), ["runs/cat-0001", -1]);
  assert.equal(stage.widgets[0].value, 300);
  assert.deepEqual(changes, ["before", "after"]);

  resume({ step: 20 }); // and once more: from the node that is live now
  const [again, next] = canvas.selected;
  assert.deepEqual(graph.nodes.filter((node) => node.mode === 2), [train, opened, stage]);
  assert.deepEqual([from(again, "data"), from(save, "run")], [["RolloutEncodeDataset", 0], ["RolloutTrainSteps", 0]]);
  assert.equal(graph.getNodeById(save.getInputLink(0).origin_id), next);
});

test("of several trainings the one that made the run is taken over, and a graph that saves nothing gets Save LoRA", () => {
  const base = put("RolloutLoadDiffusers");
  const data = put("RolloutEncodeDataset", { model: [base, 0] });
  const dog = put("RolloutTrainLoRA", { model: [base, 0], data: [data, 0] }, { run_name: "dog" });
  const cat = put("RolloutTrainLoRA", { model: [base, 0], data: [data, 0] }, { run_name: "cat" });
  const save = put("RolloutSaveLoRA", { run: [dog, 0] });
  resume();
  assert.deepEqual([dog.mode, cat.mode], [0, 2]);
  assert.deepEqual(from(save, "run"), ["RolloutTrainLoRA", 0]);
  assert.equal(canvas.selected[2].type, "RolloutSaveLoRA");
  assert.equal(canvas.selected[2].widgets[0].value, "cat-0001");
});

test("a training in stages is taken over as a whole", () => {
  const base = put("RolloutLoadDiffusers");
  const data = put("RolloutEncodeDataset", { model: [base, 0] });
  const init = put("RolloutInitTraining", { model: [base, 0], data: [data, 0] });
  const first = put("RolloutTrainSteps", { run: [init, 0] });
  const middle = put("RolloutSample", { model: [first, 1] });
  const second = put("RolloutTrainSteps", { run: [first, 0] });
  const save = put("RolloutSaveLoRA", { run: [second, 0] });
  resume();
  assert.deepEqual(graph.nodes.filter((node) => node.mode === 2), [init, first, second]);
  const [, stage] = canvas.selected;
  assert.equal(graph.getNodeById(save.getInputLink(0).origin_id), stage);
  assert.equal(graph.getNodeById(middle.getInputLink(0).origin_id), stage);
});

test("an empty graph gets a model and data to fill in", () => {
  assert.equal(resume(), false);
  assert.deepEqual(graph.nodes.map((node) => node.type), [
    "RolloutLoadDiffusers", "RolloutDatasetFromFolder", "RolloutEncodeDataset",
    "RolloutResumeTraining", "RolloutTrainSteps", "RolloutSaveLoRA",
  ]);
  const [opened] = canvas.selected;
  assert.deepEqual([from(opened, "model"), from(opened, "data")], [["RolloutLoadDiffusers", 0], ["RolloutEncodeDataset", 0]]);
  graph.nodes.length = 0;
  resume({ hosted: true });
  assert.deepEqual(graph.nodes.slice(0, 4).map((node) => node.type), [
    "CheckpointLoaderSimple", "RolloutFromComfyModel", "RolloutDatasetFromFolder", "RolloutEncodeDataset",
  ]);
  const wrapped = graph.nodes[1];
  assert.deepEqual(["model", "clip", "vae"].map((name) => from(wrapped, name)), [0, 1, 2].map((slot) => ["CheckpointLoaderSimple", slot]));
});
