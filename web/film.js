// @ts-check
/** The film of a run: one frame as a picture, a slider over the rollout, one over the training, the drift. No host. */

import { Reel, bars, percent } from "./reel.js";
import { number } from "./scale.js";

const SVG = "http://www.w3.org/2000/svg";
const BARS = { width: 90, height: 16 };

export const STYLE = `
.film { display: grid; grid-template-columns: auto 1fr auto; gap: 2px 8px; align-items: center;
  font-variant-numeric: tabular-nums; }
.film > .wide { grid-column: 1 / -1; }
.thirds { display: grid; grid-template-columns: repeat(3, 1fr); text-align: center; color: var(--descrip-text, #aaa); }
.film img { display: block; width: 100%; border-radius: 3px; background: var(--border-color, #666); }
.film input[type="range"] { width: 100%; min-width: 0; height: 14px; accent-color: var(--own); cursor: pointer; }
.film output { min-width: 5.5em; text-align: end; color: var(--descrip-text, #aaa); }
.film svg { display: block; width: ${BARS.width}px; height: ${BARS.height}px; }
.film rect { fill: var(--own); opacity: 0.45; }
.film rect.shown { opacity: 1; }
.film line { stroke: var(--input-text, #ddd); stroke-width: 1.5; }
`;

export class FilmView {
  /**
   * @param {(key: string) => string} word in the user's language
   * @param {(run: string, film: import("./reel.js").Film, frame: number) => string} address of a frame
   */
  constructor(word, address) {
    this.word = word;
    this.address = address;
    this.reel = new Reel();
    this.run = "";
    this.picture = document.createElement("img");
    this.picture.className = "wide";
    this.picture.draggable = false;
    this.frames = this.slider("rolloutStep", (value) => this.reel.chooseFrame(value));
    this.films = this.slider("trainingStep", (value) => this.reel.chooseFilm(value));
    this.drift = document.createElement("span");
    this.bars = /** @type {SVGSVGElement} */ (document.createElementNS(SVG, "svg"));
    this.bars.setAttribute("viewBox", `0 0 ${BARS.width} ${BARS.height}`);
    this.bars.setAttribute("aria-hidden", "true"); // the numbers beside it say it
    this.element = document.createElement("div");
    this.element.className = "film base";
    this.element.hidden = true;
    this.element.append(this.titles(), this.picture, ...this.frames.row, ...this.films.row);
    const drift = document.createElement("span");
    drift.className = "drift";
    drift.textContent = word("drift");
    drift.title = this.drift.title = word("driftTitle");
    this.element.append(drift, this.drift, this.bars);
  }

  /** What the thirds of a frame are. */
  titles() {
    const titles = document.createElement("div");
    titles.className = "thirds wide";
    for (const key of ["ownState", "cleanState", "estimate"]) {
      const title = document.createElement("span");
      title.textContent = this.word(key);
      title.title = this.word(`${key}Title`);
      titles.append(title);
    }
    return titles;
  }

  /**
   * A labelled slider.
   * @param {string} key of its word
   * @param {(value: number) => void} choose
   */
  slider(key, choose) {
    const [name, input, value] = [document.createElement("span"), document.createElement("input"), document.createElement("output")];
    name.textContent = this.word(key);
    name.title = input.title = value.title = this.word(`${key}Title`);
    input.type = "range";
    input.min = "0";
    input.setAttribute("aria-label", this.word(key));
    input.addEventListener("input", () => {
      choose(Number(input.value));
      this.draw();
    });
    return { input, value, row: [name, input, value] };
  }

  /**
   * Show the films of a run.
   * @param {string} run
   * @param {import("./reel.js").Film[]} films
   */
  show(run, films) {
    if (run !== this.run) this.reel = new Reel();
    this.run = run;
    this.reel.load(films);
    this.draw();
  }

  draw() {
    const { film, frame, films, at, numbers } = this.reel;
    this.element.hidden = !film;
    if (!film || !numbers) return;
    const address = this.address(this.run, film, frame);
    if (this.picture.getAttribute("src") !== address) this.picture.src = address;
    this.place(this.frames, frame, film.frames, `${frame} / ${film.frames - 1} · \u03c3 ${number(numbers.sigma)}`);
    this.place(this.films, at, films.length, String(film.step));
    this.drift.textContent = `${percent(numbers.drift)} · ${this.word("floor")} \u2264 ${percent(numbers.floor)}`;
    this.picture.alt = `${this.word("film")}: ${this.word("trainingStep")} ${film.step}, ${this.word("rolloutStep")} ${frame}`;
    this.drawBars(film, frame);
  }

  /**
   * @param {{ input: HTMLInputElement, value: HTMLOutputElement }} slider
   * @param {number} at
   * @param {number} count
   * @param {string} text
   */
  place({ input, value }, at, count, text) {
    input.max = String(count - 1);
    input.value = String(at);
    input.disabled = count < 2;
    input.setAttribute("aria-valuetext", text);
    value.textContent = text;
  }

  /**
   * Drift over the rollout, the floor as a mark across each bar.
   * @param {import("./reel.js").Film} film
   * @param {number} shown
   */
  drawBars(film, shown) {
    const pitch = BARS.width / film.frames;
    const [width, room] = [Math.max(2, pitch - 3), BARS.height - 2];
    const parts = bars(film).flatMap(({ height, mark }, i) => {
      const [x, y] = [i * pitch, BARS.height - mark * room];
      const bar = element("rect", { x, y: BARS.height - height * room, width, height: height * room });
      if (i === shown) bar.setAttribute("class", "shown");
      return [bar, element("line", { x1: x, x2: x + width, y1: y, y2: y })];
    });
    this.bars.replaceChildren(...parts);
  }
}

/**
 * @param {string} tag
 * @param {Record<string, number>} attributes
 */
function element(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value.toFixed(1));
  return made;
}
