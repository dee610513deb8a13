// @ts-check
/** The panel of a training node: chart, film, numbers, buttons. Knows the DOM, not the host. */

import { STYLE as CHART_STYLE, draw, isMeasured } from "./chart.js";
import { ending, sentence } from "./ending.js";
import { LOSSES } from "./facts.js";
import { FilmView, STYLE as FILM_STYLE } from "./film.js";
import { edition } from "./reel.js";
import { SamplesView, STYLE as SAMPLES_STYLE } from "./samples.js";
import { bytes, duration, newest, number } from "./scale.js";

/**
 * What the training node tells; complete each time.
 * @typedef {object} Facts
 * @property {string} run name of the run's folder
 * @property {number} step
 * @property {number} last_step
 * @property {import("./chart.js").Curve} curve
 * @property {number} probability of a rollout, in this step
 * @property {number} steps_per_second
 * @property {number | null} seconds_left
 * @property {number} rollout_share of the model's time
 * @property {"running" | "done" | "stopped" | "failed"} state
 * @property {string} [error] what it failed with
 * @property {number | null} [memory] bytes
 * @property {number[]} [film] training steps that were filmed
 * @property {number[]} [samples] training steps that the user's prompts were drawn at
 * @property {number} [saved] step of the last saved state
 * @property {string} [saved_file] its name, as `folder/file`
 * @property {{ step: number, loss: number } | null} [best] where the validation loss was least, if the run keeps that
 * @property {string[]} [told] lines about the whole training: what it needs and costs, whose settings it has
 * @property {string[]} [doubts] lines about a training that does not seem to learn
 * @property {string} [node]
 * @property {string} [prompt_id]
 */

/**
 * What can be asked of a training between two steps.
 * @typedef {"save" | "preview" | "finish"} Question
 */

/**
 * What a panel asks of the host.
 * @typedef {object} Host
 * @property {(facts: Facts) => void} stop
 * @property {(facts: Facts, what: Question) => Promise<void>} ask
 * @property {(run: string) => Promise<import("./reel.js").Film[]>} films
 * @property {(run: string, film: import("./reel.js").Film, frame: number) => string} frame its address
 * @property {(run: string) => Promise<import("./contact.js").Drawn[]>} samples pictures of the user's prompts
 * @property {(run: string, drawn: import("./contact.js").Drawn, number: number) => string} sample the address of one
 */

const MIN_HEIGHT = 200;

const STYLE = `
:host { display: block; box-sizing: border-box; height: 100%; min-height: ${MIN_HEIGHT}px; width: 100%; overflow: hidden; }
.panel { display: flex; flex-direction: column; gap: 3px; height: 100%; box-sizing: border-box; padding: 4px 6px;
  font: 11px/1.4 system-ui, sans-serif; color: var(--input-text, #ddd); background: var(--comfy-input-bg, #222);
  border-radius: 6px; user-select: none; }
.row { display: flex; flex-wrap: wrap; gap: 2px 10px; align-items: center; }
.row > .end { margin-left: auto; }
.name { display: inline-flex; gap: 4px; align-items: center; font-variant-numeric: tabular-nums; }
.name::before { content: ""; width: 10px; height: 3px; border-radius: 2px; background: var(--own); }
.plot { flex: 1 1 0; min-height: 80px; position: relative; }
.plot > svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.numbers { color: var(--descrip-text, #aaa); font-variant-numeric: tabular-nums; }
.told { color: var(--descrip-text, #aaa); overflow: hidden; display: -webkit-box; -webkit-line-clamp: 2;
  -webkit-box-orient: vertical; flex: none; }
.doubts { color: var(--warning-text, #ffb454); white-space: pre-line; flex: none; max-height: 8.4em; overflow-y: auto; }
.ended { font-weight: 600; overflow: hidden; display: -webkit-box; -webkit-line-clamp: 3; -webkit-box-orient: vertical; flex: none; }
.ended.failed { color: var(--error-text, #ff6b6b); }
label { display: inline-flex; gap: 3px; align-items: center; cursor: pointer; }
input { margin: 0; }
.buttons { display: inline-flex; gap: 4px; }
button { font: inherit; color: inherit; background: transparent; border: 1px solid var(--border-color, #666);
  border-radius: 4px; padding: 1px 8px; cursor: pointer; }
button:hover:enabled { background: var(--comfy-menu-bg, #444); }
button:disabled { opacity: 0.45; cursor: default; }
:focus-visible { outline: 2px solid var(--input-text, #ddd); outline-offset: 1px; }
[hidden] { display: none !important; }
${CHART_STYLE}${FILM_STYLE}${SAMPLES_STYLE}`;

export class Panel {
  /**
   * @param {(key: string) => string} word in the user's language
   * @param {Host} host
   * @param {() => void} [grown] called when the panel needs another height
   */
  constructor(word, host, grown = () => {}) {
    this.word = word;
    this.host = host;
    this.grown = grown;
    /** @type {Facts | null} */
    this.facts = null;
    /** What is shown of the films, see `edition`. */
    this.edition = "";
    /** The graph whose training was asked to finish; "" is none. */
    this.finishing = "";
    /** Pixels that the panel needs. */
    this.minHeight = MIN_HEIGHT;
    this.element = document.createElement("div");
    this.element.className = "rollout-trainer-panel";
    const root = this.element.attachShadow({ mode: "open" });
    const style = document.createElement("style");
    style.textContent = STYLE;
    this.legend = make("div", "row");
    this.svg = /** @type {SVGSVGElement} */ (document.createElementNS("http://www.w3.org/2000/svg", "svg"));
    this.film = new FilmView(word, host.frame);
    this.samples = new SamplesView(word, host.sample);
    /** What is shown of the user's prompts, see `edition`. */
    this.drawn = "";
    this.numbers = make("span", "numbers");
    this.numbers.textContent = word("waiting");
    this.numbers.title = word("waitingTitle");
    this.saved = make("span", "numbers");
    this.told = make("div", "told");
    this.told.hidden = true;
    this.doubts = make("div", "doubts");
    this.doubts.setAttribute("role", "status");
    this.doubts.hidden = true;
    this.ended = make("div", "ended");
    this.ended.setAttribute("role", "status");
    this.ended.hidden = true;
    this.log = document.createElement("input");
    this.log.type = "checkbox";
    this.log.checked = true; // ADR is often a hundredth of FC
    this.log.addEventListener("change", () => this.queueDraw());
    this.save = this.button("saveNow", () => this.ask(this.save, "save"));
    this.preview = this.button("previewNow", () => this.ask(this.preview, "preview"));
    this.finish = this.button("finishNow", () => this.ask(this.finish, "finish"));
    this.stop = this.button("stop", () => this.askToStop());
    this.plot = make("div", "plot");
    this.plot.append(this.svg);
    this.plot.title = word("chartTitle");
    root.append(style, this.layOut(), this.samples.dialog);
    this.resized = new ResizeObserver(() => this.measure());
    this.resized.observe(this.plot);
    this.resized.observe(this.film.element);
    this.resized.observe(this.samples.element);
    this.resized.observe(this.told);
    this.resized.observe(this.doubts);
    this.frame = 0;
  }

  /** Build the panel's tree. */
  layOut() {
    const label = make("label", "end");
    label.append(this.log, this.word("log"));
    label.title = this.word("logTitle");
    const head = make("div", "row");
    head.append(this.legend, label);
    const buttons = make("span", "end buttons");
    buttons.append(this.preview, this.save, this.finish, this.stop);
    const foot = make("div", "row");
    foot.append(this.numbers, this.saved, buttons);
    const panel = make("div", "panel");
    panel.append(head, this.plot, this.film.element, this.samples.element, this.told, this.doubts, this.ended, foot);
    return panel;
  }

  /**
   * A button that can be pressed while the training runs.
   * @param {string} key of its word; its explanation is the word `<key>Title`
   * @param {() => void} pressed
   */
  button(key, pressed) {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = this.word(key);
    made.title = this.word(`${key}Title`);
    made.disabled = true;
    made.addEventListener("click", pressed);
    return made;
  }

  /**
   * Show newer facts.
   * @param {Facts} facts
   */
  show(facts) {
    this.facts = facts;
    this.stop.textContent = this.word("stop");
    for (const button of [this.save, this.preview, this.stop]) button.disabled = facts.state !== "running";
    const finishing = facts.state === "running" && facts.prompt_id === this.finishing;
    this.finish.disabled = facts.state !== "running" || finishing;
    this.finish.textContent = this.word(finishing ? "finishing" : "finishNow");
    this.say(ending(facts, this.word), facts.state === "failed");
    this.legend.replaceChildren(...this.names(facts.curve));
    this.numbers.title = "";
    this.numbers.replaceChildren(...this.summary(facts));
    this.showSaved(facts);
    this.showTold(facts);
    this.showDoubts(facts);
    this.element.dataset.step = String(facts.step);
    this.element.dataset.state = facts.state;
    this.element.dataset.run = facts.run;
    this.showFilms(facts);
    this.showSamples(facts);
    this.queueDraw();
  }

  /** @param {Facts} facts */
  showSaved({ saved, saved_file }) {
    this.saved.textContent = saved ? this.word("savedStep").replace("<n>", String(saved)) : "";
    this.saved.title = (saved && saved_file) || "";
  }

  /** @param {Facts} facts */
  showTold({ told = [] }) {
    this.told.textContent = this.told.title = told.join("; ");
    this.told.hidden = told.length === 0;
  }

  /** @param {Facts} facts */
  showDoubts({ doubts = [] }) {
    this.doubts.textContent = doubts.map((line) => `\u26a0 ${line}`).join("\n");
    this.doubts.hidden = doubts.length === 0;
  }

  /**
   * Fetch the films when there is a new one.
   * @param {Facts} facts
   */
  async showFilms(facts) {
    const wanted = edition(facts);
    if (wanted === this.edition) return;
    this.edition = wanted;
    const films = wanted ? await this.host.films(facts.run) : [];
    if (this.edition !== wanted) return; // a newer one is on its way
    this.film.show(facts.run, films.filter(({ step }) => step <= (facts.film?.at(-1) ?? 0)));
    this.element.dataset.films = String(this.film.reel.films.length);
  }

  /**
   * Fetch what was drawn of the user's prompts when there is something new.
   * @param {Facts} facts
   */
  async showSamples({ run, samples }) {
    const wanted = edition({ run, film: samples });
    if (wanted === this.drawn) return;
    this.drawn = wanted;
    const drawn = wanted ? await this.host.samples(run) : [];
    if (this.drawn !== wanted) return; // newer ones are on their way
    this.samples.show(run, drawn.filter(({ step }) => step <= (samples?.at(-1) ?? 0)));
    this.element.dataset.samples = String(this.samples.drawn.length);
  }

  /**
   * The run ended without a last word, or failed before it had a first one.
   * @param {string} [error]
   */
  end(error) {
    const running = this.facts?.state === "running";
    if (this.facts && running) this.show({ ...this.facts, state: error ? "failed" : "stopped", error, seconds_left: null });
    else if (error && this.facts?.state !== "failed") this.say(`${this.word("failed")} ${sentence(error)}`, true);
  }

  /**
   * How it ended, in a line of its own; "" takes the line away.
   * @param {string} text
   * @param {boolean} failed
   */
  say(text, failed) {
    this.ended.textContent = this.ended.title = text;
    this.ended.hidden = !text;
    this.ended.classList.toggle("failed", failed);
  }

  /** @param {import("./chart.js").Curve} curve */
  names(curve) {
    const measured = LOSSES.filter((name) => isMeasured(curve, name));
    return measured.map((name) => {
      const item = make("span", `name ${name}`);
      item.textContent = `${this.word(name)} ${number(newest(curve[name]))}`;
      item.title = this.word(`${name}Title`);
      return item;
    });
  }

  /**
   * The numbers of the training in one line, each with its explanation.
   * @param {Facts} facts
   * @returns {(Node | string)[]}
   */
  summary(facts) {
    const percent = (/** @type {number} */ share) => `${Math.round(share * 100)} %`;
    const parts = [this.part("steps", `${facts.step} / ${facts.last_step}`)];
    if (facts.steps_per_second) parts.push(this.part("rate", `${number(facts.steps_per_second)} ${this.word("rate")}`));
    if (facts.state === "running") parts.push(this.part("left", `${duration(facts.seconds_left)} ${this.word("left")}`));
    if (facts.probability || facts.rollout_share) {
      parts.push(this.part("probability", `${this.word("probability")} ${percent(facts.probability)}`));
      parts.push(this.part("share", `${this.word("share")} ${percent(facts.rollout_share)}`));
    }
    if (facts.best) parts.push(this.part("best", `${this.word("best")} ${facts.best.step}`));
    if (facts.memory) parts.push(this.part("memory", `${this.word("memory")} ${bytes(facts.memory)}`));
    return parts.flatMap((part, i) => (i ? [" · ", part] : [part]));
  }

  /**
   * @param {string} key its explanation is the word `<key>Title`
   * @param {string} text
   */
  part(key, text) {
    const made = document.createElement("span");
    made.textContent = text;
    made.title = this.word(`${key}Title`);
    return made;
  }

  /** Stop at the next step; what is shown then comes with the last facts. */
  askToStop() {
    if (!this.facts) return;
    this.stop.disabled = true;
    this.stop.textContent = this.word("stopping");
    this.host.stop(this.facts);
  }

  /**
   * Ask for something after the current step; the button is back with the facts that come next.
   * @param {HTMLButtonElement} button
   * @param {Question} what
   */
  ask(button, what) {
    if (!this.facts) return;
    button.disabled = true;
    if (what === "finish") {
      this.finishing = this.facts.prompt_id ?? "";
      button.textContent = this.word("finishing");
    }
    this.host.ask(this.facts, what);
  }

  /** What is in the panel has another size. */
  measure() {
    const more = [this.film.element, this.samples.element, this.told, this.doubts];
    const height = more.reduce((sum, element) => sum + element.offsetHeight, MIN_HEIGHT);
    if (height !== this.minHeight) {
      this.minHeight = height;
      this.element.style.minHeight = `${height}px`;
      this.grown();
    }
    this.queueDraw();
  }

  /** Draw before the next frame, once however often it is asked for. */
  queueDraw() {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.draw();
    });
  }

  draw() {
    const [width, height] = [this.plot.clientWidth, this.plot.clientHeight];
    if (!this.facts || width < 60 || height < 40) return;
    const value = number(newest(this.facts.curve.base ?? []));
    const label = `${this.word("chart")}: ${this.word("base")} ${value}, ${this.facts.step} / ${this.facts.last_step}`;
    draw(this.svg, this.facts.curve, { width, height, log: this.log.checked, label, mark: this.facts.best?.step });
  }

  /** Take everything down; the panel is not used again. */
  dispose() {
    this.resized.disconnect();
    cancelAnimationFrame(this.frame);
    this.element.remove();
  }
}

/**
 * @param {string} tag
 * @param {string} name class
 */
function make(tag, name) {
  const made = document.createElement(tag);
  made.className = name;
  return made;
}
