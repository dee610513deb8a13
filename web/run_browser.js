// @ts-check
/** The sidebar tab with the training runs. While it is closed it listens to nothing and costs nothing. */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { addResume } from "./resume.js";
import { size } from "./run_facts.js";
import { RunView } from "./run_view.js";
import { locale, word } from "./words.js";

/** @typedef {import("./run_facts.js").Run} Run */
/** @typedef {import("./run_facts.js").Details} Details */

const ROUTE = "/rollout_trainer/runs";
const SETTLED = 1000; // ms after which the last state of a training is on the disk and the queue is idle
/** @type {("execution_success" | "execution_error" | "execution_interrupted")[]} */
const ENDS = ["execution_success", "execution_error", "execution_interrupted"];

/** @param {string} name */
const address = (name) => `${ROUTE}/${encodeURIComponent(name)}`;

/** @param {string} route */
async function get(route) {
  try {
    const response = await api.fetchApi(route);
    return response.ok ? await response.json() : null;
  } catch {
    return null; // no server: the view says so
  }
}

/**
 * @param {"success" | "error"} severity
 * @param {string} summary
 * @param {string} detail
 * @param {number} [life] milliseconds
 */
function tell(severity, summary, detail, life = 4000) {
  app.extensionManager.toast.add({ severity, summary, detail, life });
}

/**
 * @param {Details} run
 * @param {number} step -1 is the newest
 */
function resume(run, step) {
  const reached = step < 0 ? (run.step ?? 0) : step;
  const until = reached < (run.planned ?? 0) ? (run.planned ?? 0) : 0;
  if (!view) return;
  const cover = view.element.getBoundingClientRect();
  const create = (/** @type {string} */ type) => LiteGraph.createNode(type);
  const { name, folder, hosted } = run;
  const replaced = addResume(app.canvas, create, { name, folder, step, until, hosted }, cover);
  const what = word(replaced ? "resumedInPlace" : "resumedWithLoaders");
  tell("success", word("resumed").replace("<run>", name).replace("<n>", String(reached)), what, 12000);
}

/**
 * @param {Details} run
 * @param {number} step of a saved state
 */
async function saveLora(run, step) {
  const options = { method: "POST", headers: { "X-Rollout-Trainer": "1" } };
  const response = await api.fetchApi(`${address(run.name)}/lora/${step}`, options).catch(() => null);
  const said = await response?.json().catch(() => null);
  if (!response?.ok) return tell("error", word("runsLoraNotSaved"), said?.error ?? word("runsNoAnswer"));
  tell("success", word("runsLoraSaved"), said.file);
  await app.refreshComboInNodes?.(); // loaders offer the new file
}

/** @param {Details} run */
async function copyPath(run) {
  try {
    await navigator.clipboard.writeText(run.path);
    tell("success", word("runsCopied"), run.path);
  } catch {
    tell("error", word("runsNotCopied"), run.path); // the browser forbids it, as on plain http from elsewhere
  }
}

/** @param {Details} run */
async function remove(run) {
  const message = word("runsDeleteHow").replace("<n>", String(run.steps.length)).replace("<s>", size(run.size));
  const options = { title: word("runsDeleteTitle"), message, type: "delete", itemList: [run.name] };
  if (!(await app.extensionManager.dialog.confirm(options))) return false;
  const response = await api.fetchApi(address(run.name), { method: "DELETE", headers: { "X-Rollout-Trainer": "1" } });
  if (response.ok || response.status === 404) return true;
  tell("error", word("runsNotDeleted"), response.status === 409 ? word("runsInUse") : run.name);
  return false;
}

const ACTIONS = {
  list: () => get(ROUTE),
  details: (/** @type {string} */ name) => get(address(name)),
  thumbnail: (/** @type {Run} */ run) => api.apiURL(`${address(run.name)}/thumbnail?film=${run.film}`),
  resume,
  saveLora,
  copyPath,
  remove,
};

/** @type {RunView | null} */
let view = null;
let timer = 0;

/** Ask anew in a moment, once however often something happens. */
function refreshSoon() {
  timer ||= window.setTimeout(() => {
    timer = 0;
    view?.refresh();
  }, SETTLED);
}

/** @param {{ detail: import("./panel.js").Facts }} event */
function progressed({ detail }) {
  if (!view?.told(detail) || detail.state !== "running") refreshSoon();
}

/** @param {HTMLElement} place */
function open(place) {
  if (view && place.contains(view.element)) return; // the host draws its sidebar anew now and then
  close();
  view = new RunView(word, locale(), ACTIONS);
  place.style.height = "100%";
  place.replaceChildren(view.element);
  api.addEventListener("rollout_trainer.progress", progressed);
  for (const event of ENDS) api.addEventListener(event, refreshSoon);
  view.refresh();
}

function close() {
  window.clearTimeout(timer);
  timer = 0;
  api.removeEventListener("rollout_trainer.progress", progressed);
  for (const event of ENDS) api.removeEventListener(event, refreshSoon);
  view?.dispose();
  view = null;
}

app.registerExtension({
  name: "rollout_trainer.runs",

  // The words are there: every extension's `init` has run by now.
  setup() {
    app.extensionManager.registerSidebarTab({
      id: "rollout-trainer-runs",
      icon: "pi pi-chart-line",
      title: word("runs"),
      tooltip: word("runsTip"),
      type: "custom",
      render: open,
      destroy: close,
    });
  },
});
