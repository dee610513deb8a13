// @ts-check
/** The run browser: a list, and below it the run that is chosen or the two that are compared. Knows the DOM, not the host. */

import { STYLE as CHART, compare, draw, isMeasured } from "./chart.js";
import { LOSSES } from "./facts.js";
import { ago, choose, differences, matching, settingRows, size } from "./run_facts.js";
import { newest, number } from "./scale.js";

/** @typedef {import("./run_facts.js").Run} Run */
/** @typedef {import("./run_facts.js").Details} Details */

/**
 * What the view asks of whoever shows it.
 * @typedef {object} Actions
 * @property {() => Promise<{ runs: Run[], skipped: string[] } | null>} list null: the server does not answer
 * @property {(name: string) => Promise<Details | null>} details null: there is no such run
 * @property {(run: Run) => string} thumbnail its address
 * @property {(run: Details, step: number) => void} resume
 * @property {(run: Details, step: number) => Promise<void>} saveLora
 * @property {(run: Details) => void} copyPath
 * @property {(run: Details) => Promise<boolean>} remove whether it was deleted
 */

// Not in a shadow tree: the host looks at the focused element to tell typing from its own shortcuts.
const STYLE = `
.rollout-runs { --line: var(--interface-stroke, var(--border-color, #4e4e4e)); --soft: var(--muted-foreground, var(--descrip-text, #999));
  --field: var(--secondary-background, color-mix(in srgb, var(--input-text, #ddd) 9%, transparent));
  --over: var(--secondary-background-hover, color-mix(in srgb, var(--input-text, #ddd) 18%, transparent));
  --accent: var(--primary-background, #0b8ce9);
  display: flex; flex-direction: column; height: 100%; min-width: 0; box-sizing: border-box; overflow: hidden;
  font: 13px/1.4 Inter, system-ui, sans-serif; color: var(--base-foreground, var(--input-text, #ddd));
& header { display: flex; align-items: center; min-height: 4rem; padding: 0 .75rem; box-sizing: border-box; flex: none; }
& h2 { flex: 1; margin: 0; font-size: 14px; font-weight: 700; }
& h3 { margin: 0; font-size: 13px; font-weight: 600; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
& button, & select, & input[type=search] { font: inherit; color: inherit; border: none; border-radius: 8px; }
& button { display: inline-flex; gap: 6px; align-items: center; padding: 5px 9px; background: var(--field); cursor: pointer; white-space: nowrap; }
& button:hover:enabled { background: var(--over); }
& button:disabled { opacity: .45; cursor: default; }
& button.plain { background: transparent; padding: 7px; }
& button.main { background: var(--accent); color: #fff; }
& button.main:hover:enabled { background: var(--primary-background-hover, #31b9f4); }
& button.danger { color: var(--destructive-background, var(--error-text, #e5484d)); }
& button[aria-pressed=true] { outline: 1px solid var(--accent); }
& i { font-size: 12px; }
& .search { position: relative; flex: none; padding: 0 .75rem .5rem; }
& .search i { position: absolute; left: 1.4rem; top: 10px; color: var(--soft); pointer-events: none; }
& input[type=search] { width: 100%; box-sizing: border-box; padding: 6px 8px 6px 30px; background: var(--field); }
& ::placeholder { color: var(--soft); opacity: 1; }
& ul { flex: 1 1 0; min-height: 96px; margin: 0; padding: 2px .5rem; overflow-y: auto; list-style: none; }
& li { display: flex; gap: 10px; align-items: center; padding: 5px 6px; border-radius: 8px; cursor: pointer; }
& li:hover { background: var(--field); }
& li[aria-selected=true] { background: var(--over); }
& li[data-mark]::after { content: ""; flex: none; width: 14px; border-top: 3px solid color-mix(in srgb, var(--hue) 68%, var(--input-text, #ddd)); }
& li[data-mark="0"] { --hue: #2f7df0; } & li[data-mark="1"] { --hue: #cf7408; } /* as .run0 and .run1 of the chart */
& li[data-mark="1"]::after { border-top-style: dashed; }
& :focus-visible { outline: 2px solid var(--accent); outline-offset: -2px; }
& .picture { position: relative; flex: none; display: grid; place-items: center; width: 40px; height: 40px; border-radius: 6px;
  overflow: hidden; background: var(--field); color: var(--soft); }
& .picture img { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: cover; object-position: left top; }
& .about { flex: 1; min-width: 0; }
& .about > * { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
& .soft { color: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
& .note { flex: none; margin: 0; padding: .25rem .75rem; overflow: hidden; text-overflow: ellipsis; }
& .details { flex: none; display: flex; flex-direction: column; gap: 8px; max-height: 68%; overflow-y: auto; padding: .75rem;
  box-sizing: border-box; border-top: 1px solid var(--line); }
& .head { display: flex; gap: 12px; align-items: center; justify-content: space-between; }
& .row { display: flex; flex-wrap: wrap; gap: 4px 6px; align-items: center; }
& .row > .name { margin-right: 6px; }
& label { flex: none; display: inline-flex; gap: 5px; align-items: center; cursor: pointer; }
& label input { margin: 0; accent-color: var(--accent); }
& select { padding: 3px 6px; background: var(--field); }
& option { background: var(--comfy-menu-bg, #353535); }
& .name { display: inline-flex; gap: 5px; align-items: center; min-width: 0; font-size: 12px; font-variant-numeric: tabular-nums; }
& .name::before { content: ""; flex: none; width: 12px; border-top: 3px solid var(--own); }
& .name.run1::before { border-top-style: dashed; }
& .plot { flex: none; position: relative; height: 170px; }
& .plot > svg { position: absolute; inset: 0; width: 100%; height: 100%; }
& table { border-collapse: collapse; font-size: 12px; table-layout: fixed; width: 100%; }
& th { width: 32%; padding: 1px 8px 1px 0; text-align: left; vertical-align: top; font-weight: 400; color: var(--soft); }
& td { padding: 1px 8px 1px 0; overflow-wrap: anywhere; vertical-align: top; }
& [hidden] { display: none !important; }
${CHART}
}`;

export class RunView {
  /**
   * @param {(key: string) => string} word in the user's language
   * @param {string} locale for dates
   * @param {Actions} actions
   */
  constructor(word, locale, actions) {
    this.word = word;
    this.locale = locale;
    this.actions = actions;
    /** @type {Run[]} */
    this.runs = [];
    /** Names of the runs that are looked at, two at most. @type {string[]} */
    this.chosen = [];
    /** Of the chosen runs. @type {Map<string, Details>} */
    this.known = new Map();
    /** What runs in training told last. @type {Map<string, { step: number, curve: import("./chart.js").Curve }>} */
    this.live = new Map();
    /** The next click adds a run to compare with. */
    this.picking = false;
    this.frame = 0;
    this.again = this.button("pi-refresh", "", "plain", () => this.refresh());
    this.search = input("search");
    this.list = make("ul");
    this.note = make("p", "note soft");
    this.details = make("div", "details");
    this.plot = make("div", "plot");
    this.svg = /** @type {SVGSVGElement} */ (document.createElementNS("http://www.w3.org/2000/svg", "svg"));
    this.log = input("checkbox");
    this.measure = document.createElement("select");
    this.legend = make("div", "row");
    this.element = make("section", "rollout-runs");
    this.layOut();
    this.listen();
    this.resized = new ResizeObserver(() => this.queueDraw());
    this.resized.observe(this.plot);
  }

  /** Build the tree, and say what its parts are. */
  layOut() {
    const style = document.createElement("style");
    style.textContent = STYLE;
    name(this.again, this.word("runsRefresh"));
    const header = make("header");
    header.append(make("h2", "", this.word("runs")), this.again);
    this.search.placeholder = this.word("runsSearch");
    this.search.setAttribute("aria-label", this.word("runsSearch"));
    const search = make("div", "search");
    search.append(icon("pi-search"), this.search);
    this.list.setAttribute("role", "listbox");
    this.list.setAttribute("aria-multiselectable", "true");
    this.list.setAttribute("aria-label", this.word("runs"));
    this.note.setAttribute("role", "status");
    this.details.hidden = true;
    this.plot.append(this.svg);
    this.log.checked = true;
    this.measure.setAttribute("aria-label", this.word("runsMeasure"));
    this.element.setAttribute("aria-label", this.word("runs"));
    this.element.append(style, header, search, this.list, this.note, this.details);
  }

  listen() {
    this.search.addEventListener("input", () => this.showList());
    this.list.addEventListener("click", (event) => this.clicked(event));
    this.list.addEventListener("keydown", (event) => this.pressed(event));
    this.log.addEventListener("change", () => this.queueDraw());
    this.measure.addEventListener("change", () => this.showLegend());
  }

  // --- the list ---------------------------------------------------------------------------------

  /** Ask for the list anew, and for the runs that are looked at. */
  async refresh() {
    this.element.setAttribute("aria-busy", "true");
    const answer = await this.actions.list();
    this.element.removeAttribute("aria-busy");
    if (answer) this.runs = answer.runs;
    const there = new Set(this.runs.map((run) => run.name));
    for (const run of this.runs) if (!run.training) this.live.delete(run.name);
    const skipped = answer?.skipped.length ? `${this.word("runsSkipped")} ${answer.skipped.join(", ")}` : "";
    this.note.textContent = answer ? skipped : this.word("runsNoAnswer");
    this.note.title = skipped;
    this.chosen = this.chosen.filter((name) => there.has(name));
    this.showList();
    await this.look();
  }

  /** Show the runs that the search finds; the focus stays where it is. */
  showList() {
    const focused = /** @type {HTMLElement | null} */ (this.list.querySelector(":focus"))?.dataset.run;
    const found = matching(this.runs, this.search.value);
    this.list.replaceChildren(...found.map((run) => this.item(run)));
    if (!found.length) this.list.append(make("p", "soft", this.word(this.runs.length ? "runsNoneFound" : "runsNone")));
    this.mark();
    if (focused !== undefined) this.focus(focused);
  }

  /** @param {Run} run */
  item(run) {
    const item = make("li");
    item.setAttribute("role", "option");
    item.dataset.run = run.name;
    item.title = `${run.name}\n${this.summary(run)}`;
    const picture = make("span", "picture");
    picture.append(icon("pi-chart-line"));
    if (run.film !== null) {
      const image = Object.assign(document.createElement("img"), { alt: "", loading: "lazy", src: this.actions.thumbnail(run) });
      image.addEventListener("error", () => image.remove());
      picture.append(image);
    }
    const about = make("div", "about");
    about.append(make("div", "", run.name), make("div", "soft", this.summary(run)));
    item.append(picture, about);
    return item;
  }

  /** @param {Run} run */
  summary(run) {
    const step = this.live.get(run.name)?.step ?? run.step ?? "–";
    const parts = [run.training ? this.word("runsTraining") : null, run.planned === null ? `${step}` : `${step} / ${run.planned}`];
    if (run.loss !== null) parts.push(`${this.word("runsLoss")} ${number(run.loss)}`);
    parts.push(size(run.size), run.training ? null : ago(run.modified, Date.now() / 1000, this.locale));
    return parts.filter((part) => part !== null).join(" · ");
  }

  /** @returns {HTMLElement[]} */
  items() {
    return [...this.list.querySelectorAll("li")];
  }

  /** Show which runs are chosen; one item is the way in for the keyboard. */
  mark() {
    const items = this.items();
    const entry = items.find((item) => item.dataset.run === this.chosen[0]) ?? items[0];
    for (const item of items) {
      const place = this.chosen.indexOf(item.dataset.run ?? "");
      item.setAttribute("aria-selected", String(place >= 0));
      item.tabIndex = item === entry ? 0 : -1;
      if (place >= 0 && this.chosen.length > 1) item.dataset.mark = String(place);
      else delete item.dataset.mark;
    }
  }

  /** @param {string} name of a run; the first in the list if it is not there */
  focus(name) {
    const items = this.items();
    const item = items.find((own) => own.dataset.run === name) ?? items[0];
    if (!item) return this.search.focus();
    for (const own of items) own.tabIndex = own === item ? 0 : -1;
    item.focus();
  }

  /** @param {MouseEvent} event */
  clicked(event) {
    const item = /** @type {HTMLElement} */ (event.target).closest("li");
    if (item) this.choose(item.dataset.run ?? "", event.ctrlKey || event.metaKey || event.shiftKey);
  }

  /**
   * Arrows move, Enter and the space bar choose, with Shift a second run; Delete asks to delete.
   * @param {KeyboardEvent} event
   */
  pressed(event) {
    const items = this.items();
    const at = items.indexOf(/** @type {HTMLElement} */ (event.target));
    const last = items.length - 1;
    const to = { ArrowDown: Math.min(at + 1, last), ArrowUp: Math.max(at - 1, 0), Home: 0, End: last }[event.key];
    if (at < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    if (to !== undefined) this.focus(items[to].dataset.run ?? "");
    else if (event.key === "Enter" || event.key === " ") this.choose(items[at].dataset.run ?? "", event.shiftKey);
    else if (event.key === "Delete") this.removeRun(items[at].dataset.run ?? "");
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /**
   * @param {string} name
   * @param {boolean} add to what is chosen
   */
  async choose(name, add) {
    this.chosen = choose(this.chosen, name, add || (this.picking && name !== this.chosen[0]));
    this.picking = false;
    this.mark();
    await this.look();
  }

  // --- what is chosen ---------------------------------------------------------------------------

  /** Ask for the chosen runs and show them. */
  async look() {
    const chosen = this.chosen;
    const found = await Promise.all(chosen.map((name) => this.actions.details(name)));
    if (this.chosen !== chosen) return; // another choice was made meanwhile
    this.known = new Map(found.flatMap((run) => (run ? [[run.name, run]] : [])));
    this.showDetails();
  }

  /** The chosen runs as far as they are known, with what those in training told since. */
  shown() {
    const known = this.chosen.flatMap((name) => this.known.get(name) ?? []);
    return known.map((run) => ({ ...run, curve: this.live.get(run.name)?.curve ?? run.curve }));
  }

  /** Show the chosen runs; the focus stays where it is. */
  showDetails() {
    const runs = this.shown();
    const controls = () => [...this.details.querySelectorAll("button, select, input")];
    const focused = controls().findIndex((control) => control === document.activeElement);
    this.details.hidden = !runs.length;
    if (runs.length === 1) this.details.replaceChildren(...this.one(runs[0]));
    else if (runs.length === 2) this.details.replaceChildren(...this.two(runs));
    if (focused >= 0) /** @type {HTMLElement | undefined} */ (controls()[focused])?.focus();
    this.showLegend();
  }

  /** @param {Details} run */
  one(run) {
    const title = make("h3", "", run.name);
    title.title = run.name;
    const saved = ["runsSaved", run.steps.join(", ") || "–"];
    const rows = [["runsModel", run.model || "–"], ...settingRows(run.settings, this.word), saved];
    return [this.chartHead(title), this.plot, this.legend, table(rows, this.word), ...this.buttons(run)];
  }

  /** @param {Details[]} runs */
  two(runs) {
    const measured = LOSSES.filter((name) => runs.some(({ curve }) => isMeasured(curve, name)));
    const before = this.measure.value;
    this.measure.replaceChildren(...measured.map((name) => new Option(this.word(name), name)));
    this.measure.value = measured.includes(before) ? before : (measured[0] ?? "");
    const end = this.button("pi-times", this.word("runsEndCompare"), "", () => this.choose(this.chosen[0], false));
    const row = make("div", "row");
    row.append(end);
    const rows = differences(runs, this.word);
    const same = make("div", "soft", this.word("runsSameSettings"));
    return [this.chartHead(this.measure), this.plot, this.legend, rows.length ? table(rows, this.word) : same, row];
  }

  /** @param {HTMLElement} start what stands beside the log switch */
  chartHead(start) {
    const label = make("label", "soft");
    label.append(this.log, this.word("log"));
    label.title = this.word("logTitle");
    const head = make("div", "head");
    head.append(start, label);
    return head;
  }

  showLegend() {
    const runs = this.shown();
    const entry = (/** @type {string} */ own, /** @type {string} */ text, /** @type {string} */ measured) => {
      const made = make("span", `name ${own}`);
      made.title = this.word(`${measured}Title`);
      made.append(make("span", "", text));
      return made;
    };
    if (runs.length === 1) {
      const [{ curve }] = runs;
      const measured = LOSSES.filter((name) => isMeasured(curve, name));
      this.legend.replaceChildren(...measured.map((name) => entry(name, `${this.word(name)} ${number(newest(curve[name]))}`, name)));
    } else {
      const value = (/** @type {Details} */ run) => number(newest(run.curve[this.measure.value] ?? []));
      this.legend.replaceChildren(...runs.map((run, i) => entry(`run${i}`, `${run.name} ${value(run)}`, this.measure.value)));
    }
    this.queueDraw();
  }

  /** @param {Details} run */
  buttons(run) {
    const from = document.createElement("select");
    from.append(...run.steps.toReversed().map((step) => new Option(String(step), String(step))));
    const label = make("label", "soft");
    label.append(this.word("runsFrom"), from);
    const newestStep = run.steps.at(-1);
    const resume = this.button("pi-play", this.word("runsResume"), "main", () => {
      this.actions.resume(run, Number(from.value) === newestStep ? -1 : Number(from.value));
    });
    label.title = this.word("runsFromHow");
    resume.title = this.word("runsResumeHow");
    from.disabled = !run.steps.length;
    resume.disabled = from.disabled || run.training;
    const lora = this.button("pi-download", this.word("runsSaveLora"), "", async () => {
      lora.disabled = true;
      await this.actions.saveLora(run, Number(from.value));
      lora.disabled = false;
    });
    lora.title = this.word("runsSaveLoraHow");
    lora.disabled = !run.steps.length;
    const other = this.button("pi-chart-line", this.word("runsCompare"), "", () => this.pick(other));
    other.title = this.word("runsCompareHow");
    other.setAttribute("aria-pressed", String(this.picking));
    const path = this.button("pi-copy", this.word("runsCopyPath"), "", () => this.actions.copyPath(run));
    path.title = run.path;
    const remove = this.button("pi-trash", this.word("runsDelete"), "danger", () => this.removeRun(run.name));
    remove.title = this.word("runsDeleteTip");
    remove.disabled = run.training;
    const [first, second] = [make("div", "row"), make("div", "row")];
    first.append(label, resume, lora);
    second.append(other, path, remove);
    return [first, second];
  }

  /**
   * Wait for a second run, or no longer.
   * @param {HTMLElement} button
   */
  pick(button) {
    this.picking = !this.picking;
    button.setAttribute("aria-pressed", String(this.picking));
    this.note.textContent = this.picking ? this.word("runsPick") : "";
    if (this.picking) this.focus(this.chosen[0]);
  }

  /** @param {string} name */
  async removeRun(name) {
    const run = this.known.get(name) ?? (await this.actions.details(name));
    const names = this.items().map((item) => item.dataset.run ?? "");
    const next = names[names.indexOf(name) + 1] ?? names[names.indexOf(name) - 1] ?? "";
    if (!run || !(await this.actions.remove(run))) return;
    await this.refresh();
    this.focus(next);
  }

  /**
   * Take in what a training tells.
   * @param {{ run: string, step: number, curve: import("./chart.js").Curve }} facts
   * @returns {boolean} whether the run is in the list
   */
  told(facts) {
    const run = this.runs.find(({ name }) => name === facts.run);
    if (!run) return false;
    this.live.set(run.name, facts);
    run.training = true;
    const about = this.items().find((item) => item.dataset.run === run.name)?.querySelector(".about > .soft");
    if (about) about.textContent = this.summary(run);
    if (this.chosen.includes(run.name)) this.showLegend();
    return true;
  }

  // --- the chart --------------------------------------------------------------------------------

  /** Draw before the next frame, once however often it is asked for. */
  queueDraw() {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.draw();
    });
  }

  draw() {
    const [width, height] = [this.plot.clientWidth, this.plot.clientHeight];
    const runs = this.shown();
    if (!runs.length || width < 60 || height < 40) return;
    const label = `${this.word("chart")}: ${runs.map((run) => run.name).join(", ")}`;
    const options = { width, height, log: this.log.checked, label };
    const curves = runs.map((run) => run.curve);
    if (curves.length === 1) draw(this.svg, curves[0], options);
    else compare(this.svg, curves, this.measure.value, options);
  }

  /**
   * @param {string} picture
   * @param {string} text
   * @param {string} kind class
   * @param {() => void} pressed
   */
  button(picture, text, kind, pressed) {
    const made = document.createElement("button");
    made.type = "button";
    made.className = kind;
    made.append(icon(picture));
    if (text) made.append(make("span", "", text));
    made.addEventListener("click", pressed);
    return made;
  }

  /** Take everything down; the view is not used again. */
  dispose() {
    this.resized.disconnect();
    cancelAnimationFrame(this.frame);
    this.element.remove();
  }
}

/**
 * @param {string[][]} rows key of a word, then texts
 * @param {(key: string) => string} word
 */
function table(rows, word) {
  const made = make("table");
  for (const [key, ...texts] of rows) {
    const row = make("tr");
    const head = make("th", "", word(key));
    head.setAttribute("scope", "row");
    row.append(head, ...texts.map((text) => make("td", "", text)));
    made.append(row);
  }
  return made;
}

/** @param {string} type */
function input(type) {
  const made = document.createElement("input");
  made.type = type;
  return made;
}

/** @param {string} name of a PrimeIcon, which the host brings */
function icon(name) {
  const made = make("i", `pi ${name}`);
  made.setAttribute("aria-hidden", "true");
  return made;
}

/**
 * Name what has no text.
 * @param {HTMLElement} element
 * @param {string} text
 */
function name(element, text) {
  element.title = text;
  element.setAttribute("aria-label", text);
}

/**
 * @param {string} tag
 * @param {string} [kind] class
 * @param {string} [text]
 */
function make(tag, kind = "", text = "") {
  const made = document.createElement(tag);
  made.className = kind;
  made.textContent = text;
  return made;
}
