import assert from "node:assert/strict";
import { test } from "node:test";

import { Reel, bars, edition, percent } from "../../web/reel.js";
import { bytes } from "../../web/scale.js";

const film = (step, frames = 4) => ({
  step,
  frames,
  version: 1,
  sigmas: Array.from({ length: frames }, (_, i) => 1 - i / 10),
  drift: Array.from({ length: frames }, (_, i) => i / 100),
  floor: Array.from({ length: frames }, (_, i) => i / 50),
});

test("the newest film is followed until another is looked at, and again after", () => {
  const reel = new Reel();
  reel.load([film(0)]);
  assert.equal(reel.film.step, 0);
  reel.load([film(0), film(10)]);
  assert.equal(reel.film.step, 10);
  reel.chooseFilm(0);
  reel.load([film(0), film(10), film(20)]);
  assert.equal(reel.film.step, 0);
  reel.chooseFilm(2);
  reel.load([film(0), film(10), film(20), film(30)]);
  assert.equal(reel.film.step, 30);
});

test("a film that is looked at keeps its place when others before it are thinned out, and is left when it goes", () => {
  const reel = new Reel();
  reel.load([film(0), film(10), film(20), film(30)]);
  reel.chooseFilm(2);
  reel.load([film(0), film(20), film(40)]);
  assert.deepEqual([reel.film.step, reel.at], [20, 1]);
  reel.load([film(0), film(40)]);
  assert.equal(reel.film.step, 40);
});

test("the last frame is shown first, and the chosen place from the end in films of other lengths", () => {
  const reel = new Reel();
  reel.load([film(0, 4), film(10, 6)]);
  assert.equal(reel.frame, 5);
  reel.chooseFrame(4);
  assert.deepEqual(reel.numbers, { sigma: 0.6, drift: 0.04, floor: 0.08 });
  reel.chooseFilm(0);
  assert.equal(reel.frame, 2);
  reel.chooseFrame(-3);
  assert.equal(reel.frame, 0);
  reel.chooseFrame(99);
  assert.equal(reel.frame, 3);
  reel.chooseFilm(99);
  assert.equal(reel.film.step, 10);
});

test("without films there is nothing to show and nothing to choose", () => {
  const reel = new Reel();
  reel.load([]);
  reel.chooseFilm(1);
  reel.chooseFrame(1);
  assert.deepEqual([reel.film, reel.frame, reel.numbers], [null, 0, null]);
});

test("bars are shares of the highest value, the floor's among them", () => {
  assert.deepEqual(bars(film(0, 3)), [
    { height: 0, mark: 0 },
    { height: 0.25, mark: 0.5 },
    { height: 0.5, mark: 1 },
  ]);
  assert.deepEqual(bars({ ...film(0, 1) }), [{ height: 0, mark: 0 }]);
});

test("films are asked for when their list has changed, not with every fact", () => {
  const told = { run: "a", film: [0, 10], step: 12 };
  assert.equal(edition(told), edition({ ...told, step: 13 }));
  for (const other of [{ ...told, run: "b" }, { ...told, film: [0, 10, 20] }, { ...told, film: [0, 11] }])
    assert.notEqual(edition(told), edition(other));
  assert.equal(edition({ run: "a", film: [] }), "");
  assert.equal(edition({ run: "a" }), "");
});

test("shares and memory as people read them", () => {
  assert.deepEqual([0, 0.0123, 0.1234, 1].map(percent), ["0.00 %", "1.23 %", "12.3 %", "100.0 %"]);
  assert.deepEqual([697 * 2 ** 20, 2 ** 30, 22.5 * 2 ** 30].map(bytes), ["697 MB", "1 GB", "22.5 GB"]);
});
