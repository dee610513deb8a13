// @ts-check
/** How a training ended, in the user's words. No DOM, no host. */

/**
 * One line; "" while it runs, or where it did all it was to do.
 * @param {{ state: string, step: number, last_step: number, error?: string }} facts
 * @param {(key: string) => string} word
 */
export function ending({ state, step, last_step, error }, word) {
  const said = (/** @type {string} */ key) => word(key).replace("<n>", String(step));
  if (state === "failed") return `${said("endedFailed")} ${error ? sentence(error) : ""}`.trim();
  if (state === "stopped") return said("endedStopped");
  return state === "done" && step < last_step ? said("endedEarly") : "";
}

/**
 * An error as it is told to people: the host adds tips and blank lines to some.
 * @param {string} error
 */
export function sentence(error) {
  return (error.trim().split(/\n\s*\n/)[0] ?? "").replace(/\s*\n\s*/g, " ");
}

/**
 * What a node tells of what it did, from what it returns for the page.
 * @param {unknown} text
 */
export function told(text) {
  return Array.isArray(text) ? text.filter((line) => typeof line === "string").join("\n").trim() : "";
}
