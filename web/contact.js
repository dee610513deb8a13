// @ts-check
/** Which pictures of the user's prompts stand where. No DOM, no host. */

/**
 * What was drawn after `step` training steps: one picture of each prompt.
 * @typedef {object} Drawn
 * @property {number} step
 * @property {string[]} prompts
 * @property {number} version changes when it is drawn again
 */

/** @typedef {{ at: number, number: number }} Place number of a drawing, and of a picture in it */

/**
 * Prompts by steps; null where a prompt was not drawn at a step, as it was changed between two stages.
 * @param {Drawn[]} drawn
 * @returns {{ steps: number[], rows: { prompt: string, cells: (Place | null)[] }[] }}
 */
export function grid(drawn) {
  const prompts = [...new Set(drawn.toReversed().flatMap((one) => one.prompts))]; // today's first
  const cells = (/** @type {string} */ prompt) => drawn.map((one, at) => {
    const number = one.prompts.indexOf(prompt);
    return number < 0 ? null : { at, number };
  });
  return { steps: drawn.map(({ step }) => step), rows: prompts.map((prompt) => ({ prompt, cells: cells(prompt) })) };
}

/**
 * Where an arrow leads from a picture; null: nowhere.
 * @param {Drawn[]} drawn
 * @param {Place} place
 * @param {string} key
 * @returns {Place | null}
 */
export function neighbour(drawn, { at, number }, key) {
  const [right, down] = /** @type {Record<string, [number, number]>} */ ({
    ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
  })[key] ?? [0, 0];
  const next = { at: at + right, number: number + down };
  const there = (right || down) && drawn[next.at]?.prompts[next.number] !== undefined;
  return there ? next : null;
}
