// @ts-check
/** The pack's own words in the user's language, from `locales/` by way of the host. */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

/**
 * The pack's part of one language.
 * @typedef {object} Texts
 * @property {Record<string, string>} [rolloutTrainer]
 * @property {Record<string, { inputs?: Record<string, { options?: Record<string, string> }> }>} [nodeDefs]
 */

/** @type {Texts} */
let texts = {};
/** @type {Texts} */
let english = {};
let language = "en";

/** Ask the host for the texts; call it before any node is made. */
export async function loadWords() {
  const response = await api.fetchApi("/i18n");
  /** @type {Record<string, Texts>} */
  const languages = response.ok ? await response.json() : {};
  english = languages.en ?? {};
  const chosen = String(app.extensionManager?.setting?.get("Comfy.Locale") ?? "en");
  language = chosen in languages ? chosen : "en";
  texts = languages[language] ?? english;
}

/** The language of the words, as `Intl` takes it. */
export function locale() {
  return language;
}

/**
 * One of the words in `locales/<language>/main.json`.
 * @param {string} key
 * @returns {string}
 */
export function word(key) {
  return texts.rolloutTrainer?.[key] ?? english.rolloutTrainer?.[key] ?? key;
}

/**
 * Words as a choice: "a, b, or c".
 * @param {string[]} keys
 */
export function anyOf(keys) {
  return new Intl.ListFormat(language, { type: "disjunction" }).format(keys.map(word));
}

/**
 * Let a node's combos show their options in the user's language; the values stay what they are.
 * Front ends that do not know `getOptionLabel` show the values.
 * @param {HostNode} node
 */
export function labelOptions(node) {
  const inputs = texts.nodeDefs?.[node.comfyClass ?? ""]?.inputs ?? {};
  for (const widget of node.widgets ?? []) {
    const labels = inputs[widget.name]?.options;
    if (labels && widget.options) widget.options.getOptionLabel = (v) => labels[v ?? ""] ?? v ?? "";
  }
}
