import assert from "node:assert/strict";
import { test } from "node:test";

import { grid, neighbour } from "../../web/contact.js";

const drawn = (step, ...prompts) => ({ step, prompts, version: 1 });

test("prompts stand below each other, steps beside each other, and a prompt that changed leaves gaps", () => {
  const { steps, rows } = grid([drawn(0, "cat", "dog"), drawn(50, "cat", "owl")]);
  assert.deepEqual(steps, [0, 50]);
  assert.deepEqual(rows.map(({ prompt }) => prompt), ["cat", "owl", "dog"]);
  assert.deepEqual(rows[0].cells, [{ at: 0, number: 0 }, { at: 1, number: 0 }]);
  assert.deepEqual(rows[1].cells, [null, { at: 1, number: 1 }]);
  assert.deepEqual(rows[2].cells, [{ at: 0, number: 1 }, null]);
  assert.deepEqual(grid([]), { steps: [], rows: [] });
});

test("arrows lead to pictures that are there and nowhere else", () => {
  const all = [drawn(0, "cat", "dog"), drawn(50, "cat", "dog")];
  assert.deepEqual(neighbour(all, { at: 0, number: 0 }, "ArrowRight"), { at: 1, number: 0 });
  assert.deepEqual(neighbour(all, { at: 1, number: 0 }, "ArrowDown"), { at: 1, number: 1 });
  for (const [place, key] of [[[0, 0], "ArrowLeft"], [[1, 0], "ArrowRight"], [[0, 0], "ArrowUp"], [[0, 1], "ArrowDown"], [[0, 0], "Enter"]]) {
    assert.equal(neighbour(all, { at: place[0], number: place[1] }, key), null);
  }
});
