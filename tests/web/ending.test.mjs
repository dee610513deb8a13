import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { ending, sentence, told } from "../../web/ending.js";

const { rolloutTrainer } = JSON.parse(readFileSync(new URL("../../locales/en/main.json", import.meta.url)));
const word = (key) => rolloutTrainer[key] ?? key;
const facts = (state, step, more = {}) => ({ state, step, last_step: 300, ...more });

test("a panel says how its training ended, and nothing while it runs or where it went as planned", () => {
  assert.equal(ending(facts("running", 164), word), "");
  assert.equal(ending(facts("done", 300), word), "");
  assert.equal(ending(facts("done", 164), word), "finished early at step 164");
  assert.equal(ending(facts("stopped", 164), word), "stopped at step 164; Resume Training goes on from here");
  assert.equal(ending(facts("stopped", 300), word), "stopped at step 300; Resume Training goes on from here");
  const error = "the loss must be finite,\nbut it was not; lower the learning rate\n\nTIPS: read the manual\n";
  assert.equal(
    ending(facts("failed", 7, { error }), word),
    "failed at step 7: the loss must be finite, but it was not; lower the learning rate",
  );
  assert.equal(ending(facts("failed", 7), word), "failed at step 7:");
});

test("of an error its own sentence is told, without what the host adds", () => {
  assert.equal(sentence("\nrank must be at least 1, got 0\n"), "rank must be at least 1, got 0");
  assert.equal(sentence(""), "");
});

test("what a node did is told as it says it, and nothing else is", () => {
  assert.equal(told(["saved /a/b.safetensors"]), "saved /a/b.safetensors");
  assert.equal(told(["24 pictures", "skipped p2.png"]), "24 pictures\nskipped p2.png");
  for (const other of [undefined, null, "text", [1], []]) assert.equal(told(other), "");
});
