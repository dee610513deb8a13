import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { findNode, widgetValues } from "../../web/graph.js";
import { expectedExtraForwards, hasRules, proposedRate, stepTimeFactor, waysToSave, withoutEffect } from "../../web/rules.js";

const NODE = "RolloutScheduledSampling";
const DEFAULTS = {
  max_step_offset: 5, probability: 0.5, ramp_steps: 0, prob_start: 0, prob_end: 0.5, start_step: 0, ramp_shape: "linear",
  sampler: "unipc", order: 2, strategy: "uniform", steps_per_trajectory: 50, target: "residual", reuse: 1,
  gamma: 0.2, guidance: 1,
};
const greyed = (changes) => Object.keys(withoutEffect(NODE, { ...DEFAULTS, ...changes })).sort();

test("a ramp and a probability exclude each other", () => {
  assert.deepEqual(greyed({}), ["gamma", "prob_end", "prob_start", "ramp_shape"]);
  assert.deepEqual(greyed({ ramp_steps: 100 }), ["gamma", "probability"]);
});

test("euler and rk4 have no order to choose", () => {
  assert.ok(greyed({ sampler: "euler" }).includes("order"));
  assert.ok(greyed({ sampler: "rk4" }).includes("order"));
  assert.ok(!greyed({ sampler: "dpm" }).includes("order"));
  assert.deepEqual(withoutEffect("RolloutSampler", { sampler: "euler", order: 2 }), { order: "noOrder" });
});

test("without rollouts everything but their length is greyed", () => {
  const found = greyed({ max_step_offset: 0 });
  assert.deepEqual(found, Object.keys(DEFAULTS).filter((name) => name !== "max_step_offset").sort());
});

test("mixflow takes no steps and costs nothing; guidance is residual's and costs twice", () => {
  const mixflow = { ...DEFAULTS, target: "mixflow", ramp_steps: 10 };
  const steps = ["guidance", "max_step_offset", "order", "sampler", "steps_per_trajectory", "strategy"];
  assert.deepEqual(Object.keys(withoutEffect(NODE, mixflow)).sort(), [...steps, "probability"].sort());
  assert.equal(expectedExtraForwards(mixflow, true), 0);
  assert.ok(greyed({ target: "clean" }).includes("guidance"));
  assert.equal(expectedExtraForwards({ ...DEFAULTS, guidance: 2 }, false), 2 * expectedExtraForwards(DEFAULTS, false));
});

test("what a wire brings greys nothing", () => {
  assert.deepEqual(greyed({ ramp_steps: undefined, sampler: undefined, target: undefined }), []);
  assert.ok(Number.isNaN(expectedExtraForwards({ ...DEFAULTS, probability: undefined }, false)));
  assert.ok(Number.isNaN(expectedExtraForwards({ ...DEFAULTS, sampler: undefined }, false)));
  assert.ok(Number.isNaN(expectedExtraForwards({ ...DEFAULTS, ramp_steps: undefined }, false)));
  assert.equal(hasRules("KSampler"), false);
});

test("every reason has words in both languages", () => {
  const source = readFileSync(new URL("../../web/rules.js", import.meta.url), "utf8");
  const reasons = new Set(source.match(/"(no|only|save)[A-Z]\w+"|"\w+Off"/g).map((quoted) => quoted.slice(1, -1)));
  assert.ok(reasons.size >= 9);
  for (const language of ["en", "ja"]) {
    const file = new URL(`../../locales/${language}/main.json`, import.meta.url);
    const words = JSON.parse(readFileSync(file, "utf8")).rolloutTrainer;
    for (const reason of reasons) assert.ok(words[reason], `${language} ${reason}`);
  }
});

test("nodes are found in subgraphs, wired widgets have no value", () => {
  const inner = { getNodeById: (id) => (id === 12 ? { id: 12 } : null) };
  const graph = { getNodeById: (id) => (id === 3 ? { id: 3, subgraph: inner } : null) };
  assert.equal(findNode(graph, "3:12").id, 12);
  assert.equal(findNode(graph, 3).id, 3);
  assert.equal(findNode(graph, "4:12"), null);
  const node = {
    inputs: [{ widget: { name: "a" }, link: 7 }, { widget: { name: "b" }, link: null }, { name: "c", link: 1 }],
    widgets: [{ name: "a", value: 1 }, { name: "b", value: 2 }],
  };
  assert.deepEqual(widgetValues(node), { a: undefined, b: 2 });
});

test("what makes rollouts cheaper depends on what they are", () => {
  assert.deepEqual(waysToSave(DEFAULTS), ["saveLength", "saveProbability", "saveReuse"]);
  assert.deepEqual(waysToSave({ ...DEFAULTS, sampler: "rk4", reuse: 4 }), ["saveSolver", "saveLength", "saveProbability"]);
  assert.deepEqual(waysToSave({ ...DEFAULTS, target: "solver_error" }), ["saveProbability"]);
  assert.equal(stepTimeFactor(10, false), 6);
  assert.equal(stepTimeFactor(9, true), 4);
});

test("prodigy proposes its own learning rate, unless the user has chosen one", () => {
  assert.equal(proposedRate("prodigy", 1e-4), 1);
  assert.equal(proposedRate("prodigy", 5e-4), undefined);
  assert.equal(proposedRate("prodigy", 1), undefined);
  assert.equal(proposedRate("adamw", 1), 1e-4);
  assert.equal(proposedRate("adamw", 1e-4), undefined);
});
