// @ts-check
/** Which frame of which film of a run is shown. No DOM, no host. */

/**
 * What the server tells of one film: a rollout of one picture after `step` training steps, from source to target.
 * @typedef {object} Film
 * @property {number} step
 * @property {number[]} sigmas
 * @property {number[]} drift
 * @property {number[]} floor the drift of a perfect model
 * @property {number} frames
 * @property {number} version
 */

export class Reel {
  constructor() {
    /** @type {Film[]} in order of their steps */
    this.films = [];
    /** Which of them is shown. */
    this.at = 0;
    /** Frames before the last one: films of one run may differ in length. */
    this.fromEnd = 0;
    /** The newest film is shown as soon as it is there, unless the user looks at another. */
    this.following = true;
  }

  /**
   * Take in what is on the disk now; an older film that is looked at stays.
   * @param {Film[]} films
   */
  load(films) {
    const step = this.film?.step ?? -1;
    this.films = films;
    const same = films.findIndex((film) => film.step === step);
    if (same < 0) this.following = true;
    this.at = this.following ? Math.max(0, films.length - 1) : same;
  }

  get film() {
    return this.films[this.at] ?? null;
  }

  /** Number of the frame that is shown. */
  get frame() {
    return this.film ? Math.max(0, this.film.frames - 1 - this.fromEnd) : 0;
  }

  /** @param {number} at number of a film */
  chooseFilm(at) {
    this.at = clamp(at, this.films.length);
    this.following = this.at === this.films.length - 1;
  }

  /** @param {number} frame */
  chooseFrame(frame) {
    if (this.film) this.fromEnd = this.film.frames - 1 - clamp(frame, this.film.frames);
  }

  /** Drift and floor at the frame, and the noise level; null without a film. */
  get numbers() {
    const { film, frame } = this;
    return film && { sigma: film.sigmas[frame], drift: film.drift[frame], floor: film.floor[frame] };
  }
}

/**
 * @param {number} value
 * @param {number} count
 */
const clamp = (value, count) => Math.min(Math.max(0, Math.round(value)), Math.max(0, count - 1));

/**
 * Drift as people read it.
 * @param {number} share
 */
export function percent(share) {
  return `${(100 * share).toFixed(share < 0.1 ? 2 : 1)} %`;
}

/**
 * Bars over the states of a rollout: height and the mark of the floor as shares of the highest value.
 * @param {Film} film
 * @returns {{ height: number, mark: number }[]}
 */
export function bars(film) {
  const top = Math.max(...film.drift, ...film.floor) || 1;
  return film.drift.map((drift, i) => ({ height: drift / top, mark: film.floor[i] / top }));
}

/**
 * What of the films has changed, as a text to compare: facts come four times a second, films rarely.
 * @param {{ run: string, film?: number[] }} facts
 */
export function edition(facts) {
  return facts.film?.length ? `${facts.run} ${facts.film.length} ${facts.film.at(-1)}` : "";
}
