// @ts-check
/** The panel of a training node: chart, numbers, log switch, stop button. Knows the DOM, not the host. */

import { LINES, draw } from "./chart.js";
import { duration, newest, number } from "./scale.js";

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
 * @property {"running" | "done" | "stopped"} state
 * @property {string} [prompt_id]
 */

export const MIN_HEIGHT = 200;

const STYLE = `
:host { display: block; box-sizing: border-box; height: 100%; min-height: ${MIN_HEIGHT}px; width: 100%; overflow: hidden; }
.panel { display: flex; flex-direction: column; gap: 3px; height: 100%; box-sizing: border-box; padding: 4px 6px;
  font: 11px/1.4 system-ui, sans-serif; color: var(--input-text, #ddd); background: var(--comfy-input-bg, #222);
  border-radius: 6px; user-select: none; }
.row { display: flex; flex-wrap: wrap; gap: 2px 10px; align-items: center; }
.row > .end { margin-left: auto; }
.name { display: inline-flex; gap: 4px; align-items: center; font-variant-numeric: tabular-nums; }
.name::before { content: ""; width: 10px; height: 3px; border-radius: 2px; background: var(--own); }
.base { --own: #3f8efc; } .fc { --own: #e08a1e; } .adr { --own: #c153d6; } .validation { --own: #22a565; }
.plot { flex: 1 1 0; min-height: 80px; position: relative; }
svg { position: absolute; inset: 0; width: 100%; height: 100%; }
path { fill: none; stroke: var(--own); stroke-width: 1.6; }
path.raw { stroke-width: 1; opacity: 0.3; }
circle { fill: var(--own); }
.frame { fill: none; stroke: var(--border-color, #666); }
.grid { stroke: var(--border-color, #666); opacity: 0.35; }
text { fill: var(--descrip-text, #999); font-size: 9px; }
.numbers { color: var(--descrip-text, #aaa); font-variant-numeric: tabular-nums; }
label { display: inline-flex; gap: 3px; align-items: center; cursor: pointer; }
input { margin: 0; }
button { font: inherit; color: inherit; background: transparent; border: 1px solid var(--border-color, #666);
  border-radius: 4px; padding: 1px 8px; cursor: pointer; }
button:hover:enabled { background: var(--comfy-menu-bg, #444); }
button:disabled { opacity: 0.45; cursor: default; }
[hidden] { display: none !important; }
`;

export class Panel {
  /**
   * @param {(key: string) => string} word in the user's language
   * @param {(facts: Facts) => void} stop called when the user asks to stop
   */
  constructor(word, stop) {
    this.word = word;
    /** @type {Facts | null} */
    this.facts = null;
    this.element = document.createElement("div");
    this.element.className = "rollout-trainer-panel";
    const root = this.element.attachShadow({ mode: "open" });
    const style = document.createElement("style");
    style.textContent = STYLE;
    this.legend = make("div", "row");
    this.svg = /** @type {SVGSVGElement} */ (document.createElementNS("http://www.w3.org/2000/svg", "svg"));
    this.numbers = make("span", "numbers");
    this.numbers.textContent = word("waiting");
    this.log = document.createElement("input");
    this.log.type = "checkbox";
    this.log.checked = true; // ADR is often a hundredth of FC
    this.log.addEventListener("change", () => this.queueDraw());
    this.button = document.createElement("button");
    this.button.type = "button";
    this.button.textContent = word("stop");
    this.button.disabled = true;
    this.button.addEventListener("click", () => this.askToStop(stop));
    root.append(style, this.layOut());
    this.resized = new ResizeObserver(() => this.queueDraw());
    this.resized.observe(this.plot);
    this.frame = 0;
  }

  /** Build the panel's tree. */
  layOut() {
    const label = make("label", "end");
    label.append(this.log, this.word("log"));
    const head = make("div", "row");
    head.append(this.legend, label);
    this.plot = make("div", "plot");
    this.plot.append(this.svg);
    const foot = make("div", "row");
    const end = make("span", "end");
    end.append(this.button);
    foot.append(this.numbers, end);
    const panel = make("div", "panel");
    panel.append(head, this.plot, foot);
    return panel;
  }

  /**
   * Show newer facts.
   * @param {Facts} facts
   */
  show(facts) {
    this.facts = facts;
    this.button.textContent = this.word("stop");
    this.button.disabled = facts.state !== "running";
    this.legend.replaceChildren(...this.names(facts.curve));
    this.numbers.textContent = this.summary(facts);
    this.element.dataset.step = String(facts.step);
    this.element.dataset.state = facts.state;
    this.queueDraw();
  }

  /** The run ended without a last word, by an error for instance. */
  end() {
    if (this.facts?.state === "running") this.show({ ...this.facts, state: "stopped", seconds_left: null });
  }

  /** @param {import("./chart.js").Curve} curve */
  names(curve) {
    const measured = LINES.filter((name) => curve[name]?.some((value) => value !== null));
    return measured.map((name) => {
      const item = make("span", `name ${name}`);
      item.textContent = `${this.word(name)} ${number(newest(curve[name]))}`;
      return item;
    });
  }

  /** @param {Facts} facts */
  summary(facts) {
    const parts = [`${facts.step} / ${facts.last_step}`];
    if (facts.steps_per_second) parts.push(`${number(facts.steps_per_second)} ${this.word("rate")}`);
    if (facts.state === "running") parts.push(`${duration(facts.seconds_left)} ${this.word("left")}`);
    if (facts.probability || facts.rollout_share) {
      parts.push(`${this.word("probability")} ${Math.round(facts.probability * 100)} %`);
      parts.push(`${this.word("share")} ${Math.round(facts.rollout_share * 100)} %`);
    }
    return parts.join(" · ");
  }

  /** @param {(facts: Facts) => void} stop */
  askToStop(stop) {
    if (!this.facts) return;
    this.button.disabled = true;
    this.button.textContent = this.word("stopping");
    stop(this.facts);
  }

  /** Draw before the next frame, once however often it is asked for. */
  queueDraw() {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.draw();
    });
  }

  draw() {
    const [width, height] = [this.plot?.clientWidth ?? 0, this.plot?.clientHeight ?? 0];
    if (!this.facts || width < 60 || height < 40) return;
    const value = number(newest(this.facts.curve.base ?? []));
    const label = `${this.word("chart")}: ${this.word("base")} ${value}, ${this.facts.step} / ${this.facts.last_step}`;
    draw(this.svg, this.facts.curve, { width, height, log: this.log.checked, label });
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
