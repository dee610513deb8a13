// @ts-check
/** What the scripts know of the Python side. Written by tools/make_web_facts.py; do not edit. */

/**
 * Solvers by name: model calls of a step, and whether the setting `order` changes anything.
 * @type {{ [name: string]: { callsPerStep: number, hasOrder: boolean } | undefined }}
 */
export const SOLVERS = {
  "unipc": { callsPerStep: 1, hasOrder: true },
  "euler": { callsPerStep: 1, hasOrder: false },
  "dpm": { callsPerStep: 1, hasOrder: true },
  "rk4": { callsPerStep: 4, hasOrder: false },
};

/** The losses that a chart draws, in that order: columns of a run's curve. */
export const LOSSES = ["base", "fc", "adr", "validation"];
