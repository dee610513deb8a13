import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { ago, choose, differences, matching, settingRows, size } from "../../web/run_facts.js";

const word = (key) => ({ runsUpTo: "<p>, up to <n>", runsOff: "off", runsRank: "rank", runsAlpha: "alpha" })[key] ?? key;
const settings = (changes = {}) => ({
  lora: { kind: "lora", rank: 8, alpha: 4 },
  optimizer: { name: "adamw", lr: 0.0001, schedule: "constant" },
  batch_size: 2, accumulation: 1, seed: 0,
  rollout: {
    max_step_offset: 3, probability: 0.5, ramp_steps: 0, prob_start: 0, prob_end: 0.25, sampler: "unipc", order: 2,
    steps_per_trajectory: 50, target: "residual", reuse: 1, reflexflow: { enabled: "auto" }, ...changes,
  },
});
const rows = (changes) => Object.fromEntries(settingRows(settings(changes), word));

test("a search finds the runs that have all its words in name or model", () => {
  const runs = [{ name: "Emoji-0001", model: "sd3" }, { name: "emoji-0002", model: "flux" }, { name: "絵-0001", model: "" }];
  const found = (query) => matching(runs, query).map((run) => run.name);
  assert.deepEqual(found(""), ["Emoji-0001", "emoji-0002", "絵-0001"]);
  assert.deepEqual(found(" EMOJI "), ["Emoji-0001", "emoji-0002"]);
  assert.deepEqual(found("flux emoji"), ["emoji-0002"]);
  assert.deepEqual(found("絵"), ["絵-0001"]);
  assert.deepEqual(found("(.*"), []);
});

test("two runs at most are chosen, one at least stays", () => {
  assert.deepEqual(choose([], "a", true), ["a"]);
  assert.deepEqual(choose(["a"], "b", false), ["b"]);
  assert.deepEqual(choose(["a"], "b", true), ["a", "b"]);
  assert.deepEqual(choose(["a", "b"], "c", true), ["a", "c"]);
  assert.deepEqual(choose(["a", "b"], "a", true), ["b"]);
  assert.deepEqual(choose(["a"], "a", true), ["a"]);
});

test("sizes and ages read well", () => {
  assert.deepEqual([0, 999, 1500, 34e6, 9.96e6, 2.4e9, 5e15].map(size), ["0 B", "999 B", "1.5 kB", "34 MB", "10 MB", "2.4 GB", "5000 TB"]);
  const ages = [0, 59, 60, 7199, 86400 * 3].map((seconds) => ago(1e9 - seconds, 1e9, "en"));
  assert.deepEqual(ages, ["now", "now", "1 min. ago", "1 hr. ago", "3 days ago"]);
  assert.equal(ago(1e9 + 50, 1e9, "en"), "now"); // a clock that was set back
  assert.equal(ago(1e9 - 7200, 1e9, "ja"), "2 時間前");
});

test("settings say what matters, and of rollouts that are off nothing more", () => {
  assert.deepEqual(
    [rows().runsAdapter, rows().runsBatch, rows().runsRollouts, rows().runsSolver],
    ["lora, rank 8, alpha 4", "2", "50 %, up to 3", "unipc 2, 1/50"],
  );
  assert.equal(rows({ sampler: "rk4" }).runsSolver, "rk4, 1/50");
  assert.equal(rows({ ramp_steps: 100 }).runsRollouts, "0 → 25 %, up to 3");
  assert.equal(rows({ max_step_offset: 0 }).runsRollouts, "off");
  assert.ok(!("runsSolver" in rows({ max_step_offset: 0 })));
  assert.deepEqual(settingRows({}, word), []);
});

test("of two runs the differences are shown", () => {
  const pair = [{ settings: settings() }, { settings: settings({ max_step_offset: 0 }) }];
  assert.deepEqual(differences(pair, word), [
    ["runsRollouts", "50 %, up to 3", "off"],
    ["runsSolver", "unipc 2, 1/50", "–"],
    ["runsTarget", "residual", "–"],
    ["runsReflexFlow", "auto", "–"],
  ]);
  assert.deepEqual(differences([pair[0], pair[0]], word), []);
});

test("every key has words in both languages", () => {
  const sources = ["run_facts", "run_view", "run_browser"].map((name) => readFileSync(new URL(`../../web/${name}.js`, import.meta.url), "utf8"));
  const keys = new Set(sources.join("").match(/"runs[A-Z]?\w*"/g).map((quoted) => quoted.slice(1, -1)));
  assert.ok(keys.size >= 35);
  for (const language of ["en", "ja"]) {
    const words = JSON.parse(readFileSync(new URL(`../../locales/${language}/main.json`, import.meta.url), "utf8")).rolloutTrainer;
    for (const key of keys) assert.ok(words[key], `${language} ${key}`);
    for (const key of Object.keys(words)) if (key.startsWith("runs")) assert.ok(keys.has(key), `${language} ${key} is not used`);
  }
});
