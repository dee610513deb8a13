import assert from "node:assert/strict";
import { test } from "node:test";

import { axis, duration, extent, newest, number, path, smooth, ticks } from "../../web/scale.js";

test("a constant stays itself when smoothed, gaps stay gaps", () => {
  const found = smooth([2, null, 2, 2, null], 0.9);
  assert.deepEqual(found.map((v) => v === null), [false, true, false, false, true]);
  for (const v of found) if (v !== null) assert.ok(Math.abs(v - 2) < 1e-12);
  assert.deepEqual(smooth([1, 5, 3], 0), [1, 5, 3]);
});

test("smoothing averages noise away", () => {
  const noisy = Array.from({ length: 400 }, (_, i) => 1 + (i % 2 ? 0.5 : -0.5));
  for (const v of smooth(noisy, 0.9).slice(50)) assert.ok(Math.abs(v - 1) < 0.06);
});

test("an extent holds every value; a log one the positive values alone", () => {
  const [low, high] = extent([[1, null, 3], [0.5]], false);
  assert.ok(low >= 0 && low < 0.5 && high > 3);
  const [least] = extent([[0, -1, 0.01, 2]], true);
  assert.ok(least > 0 && least <= 0.01);
  assert.deepEqual(extent([[null]], false), [0, 1]);
  for (const log of [true, false]) {
    const [a, b] = extent([[2, 2]], log);
    assert.ok(a < 2 && b > 2);
  }
});

test("axes map their ends to their ends", () => {
  for (const log of [true, false]) {
    const place = axis(0.1, 10, 100, 0, log);
    assert.ok(Math.abs(place(0.1) - 100) < 1e-9 && Math.abs(place(10)) < 1e-9);
  }
  assert.ok(Math.abs(axis(0.1, 10, 0, 100, true)(1) - 50) < 1e-9);
  assert.equal(axis(0.1, 10, 0, 100, true)(0), null);
});

test("ticks lie within the axis, rise, and are few", () => {
  for (const log of [true, false])
    for (const [low, high] of [[0.011, 3.9], [0.2, 0.31], [1e-6, 1e5], [0.095, 0.105], [3, 3e9]]) {
      const found = ticks(low, high, log);
      assert.ok(found.length >= 1 && found.length <= 6, `${low} ${high} ${log}: ${found}`);
      found.forEach((v, i) => assert.ok(v >= low * (1 - 1e-9) && v <= high * (1 + 1e-9) && (!i || v > found[i - 1])));
    }
  assert.deepEqual(ticks(0, 300, false, 4), [0, 100, 200, 300]);
});

test("a path goes over gaps", () => {
  assert.equal(path([0, 1, 2], [5, null, 7]), "M0.0 5.0L2.0 7.0");
  assert.equal(path([], []), "");
});

test("numbers and durations read well", () => {
  assert.deepEqual([0.123456, 12345, 0, 3e-5, null, NaN].map(number), ["0.123", "12300", "0", "3.0e-5", "–", "–"]);
  assert.deepEqual([0, 59.6, 61, 3661, null].map(duration), ["0:00", "1:00", "1:01", "1:01:01", "–"]);
  assert.equal(newest([1, 2, null]), 2);
  assert.equal(newest([null]), null);
});
