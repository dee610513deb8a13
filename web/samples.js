// @ts-check
/** The user's own prompts while a run trains: a strip of prompts by training steps, one picture enlarged. No host. */

import { grid, neighbour } from "./contact.js";

/** @typedef {import("./contact.js").Drawn} Drawn */

const SIDE = 56; // pixels of a small picture

export const STYLE = `
.samples { overflow-x: auto; flex: none; }
.samples table { border-collapse: collapse; }
.samples th { font-weight: 400; color: var(--descrip-text, #aaa); padding: 0 2px; white-space: nowrap; font-variant-numeric: tabular-nums; }
.samples th[scope=row] { position: sticky; left: 0; max-width: 84px; overflow: hidden; text-overflow: ellipsis; text-align: left;
  background: var(--comfy-input-bg, #222); }
.samples td { padding: 1px; }
.samples td button { padding: 0; border: none; border-radius: 3px; display: block; line-height: 0; }
.samples td img { width: ${SIDE}px; height: ${SIDE}px; object-fit: cover; border-radius: 3px; background: var(--border-color, #666); }
dialog { padding: 12px; border: none; border-radius: 8px; max-width: 92vw; color: var(--input-text, #ddd);
  background: var(--comfy-menu-bg, #222); font: 14px/1.4 system-ui, sans-serif; text-align: center; }
dialog img { display: block; width: min(70vh, 84vw); max-height: 76vh; object-fit: contain; margin: auto; }
dialog::backdrop { background: rgb(0 0 0 / 60%); }
`;

export class SamplesView {
  /**
   * @param {(key: string) => string} word in the user's language
   * @param {(run: string, drawn: Drawn, number: number) => string} address of a picture
   */
  constructor(word, address) {
    this.word = word;
    this.address = address;
    this.run = "";
    /** @type {Drawn[]} */
    this.drawn = [];
    this.place = { at: 0, number: 0 };
    this.element = document.createElement("div");
    this.element.className = "samples";
    this.element.hidden = true;
    this.dialog = document.createElement("dialog");
    this.picture = document.createElement("img");
    this.caption = document.createElement("div");
    this.dialog.append(this.picture, this.caption);
    this.dialog.addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("keydown", (event) => this.pressed(event));
  }

  /**
   * @param {string} run
   * @param {Drawn[]} drawn in order of their steps
   */
  show(run, drawn) {
    this.run = run;
    this.drawn = drawn;
    this.element.hidden = !drawn.length;
    const { steps, rows } = grid(drawn);
    const table = document.createElement("table");
    const heads = [cell("th", this.word("samplesStep")), ...steps.map((step) => cell("th", String(step)))];
    for (const head of heads) head.title = this.word("trainingStepTitle");
    table.append(line(...heads));
    for (const { prompt, cells } of rows) {
      const head = cell("th", prompt);
      head.setAttribute("scope", "row");
      head.title = prompt;
      table.append(line(head, ...cells.map((place) => (place ? this.small(prompt, place) : cell("td")))));
    }
    const scrolled = this.element.scrollLeft + this.element.clientWidth >= this.element.scrollWidth - SIDE;
    this.element.replaceChildren(table);
    if (scrolled) this.element.scrollLeft = this.element.scrollWidth; // the newest, unless the user looks at others
  }

  /**
   * @param {string} prompt
   * @param {{ at: number, number: number }} place
   */
  small(prompt, place) {
    const drawn = this.drawn[place.at];
    const button = document.createElement("button");
    const picture = document.createElement("img");
    button.type = "button";
    picture.loading = "lazy";
    picture.draggable = false;
    picture.src = this.address(this.run, drawn, place.number);
    picture.alt = `${prompt}, ${this.word("trainingStep")} ${drawn.step}`;
    button.title = `${prompt} · ${this.word("trainingStep")} ${drawn.step}\n${this.word("samplesHow")}`;
    button.append(picture);
    button.addEventListener("click", () => this.enlarge(place));
    const made = cell("td");
    made.append(button);
    return made;
  }

  /** @param {{ at: number, number: number }} place */
  enlarge(place) {
    const drawn = this.drawn[place.at];
    this.place = place;
    this.picture.src = this.address(this.run, drawn, place.number);
    this.caption.title = this.word("samplesKeys");
    this.picture.alt = this.caption.textContent = `${drawn.prompts[place.number]} · ${this.word("trainingStep")} ${drawn.step}`;
    if (!this.dialog.open) this.dialog.showModal();
  }

  /**
   * Arrows go along the training and from prompt to prompt; Escape closes, as everywhere.
   * @param {KeyboardEvent} event
   */
  pressed(event) {
    const next = neighbour(this.drawn, this.place, event.key);
    event.stopPropagation(); // the host has shortcuts of its own
    if (!next) return;
    event.preventDefault();
    this.enlarge(next);
  }
}

/**
 * @param {"th" | "td"} tag
 * @param {string} [text]
 */
function cell(tag, text = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

/** @param {HTMLElement[]} cells */
function line(...cells) {
  const made = document.createElement("tr");
  made.append(...cells);
  return made;
}
