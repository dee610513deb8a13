// @ts-check
/** Finding nodes and the values of their widgets, in graphs with subgraphs. */

/**
 * The node that the host calls `id`: "12", or "3:12" for node 12 in the subgraph of node 3.
 * @param {any} graph
 * @param {string | number} id
 */
export function findNode(graph, id) {
  const parts = String(id).split(":");
  let node = null;
  for (const part of parts) {
    node = graph?.getNodeById(Number.isNaN(Number(part)) ? part : Number(part)) ?? null;
    graph = node?.subgraph;
  }
  return node;
}

/**
 * All nodes of a graph and its subgraphs.
 * @param {any} graph
 * @returns {any[]}
 */
export function allNodes(graph) {
  return (graph?.nodes ?? []).flatMap((/** @type {any} */ node) => [node, ...allNodes(node.subgraph)]);
}

/**
 * The values of a node's widgets; undefined where a wire brings the value.
 * @param {any} node
 * @returns {Record<string, any>}
 */
export function widgetValues(node) {
  const wired = new Set(
    (node.inputs ?? [])
      .filter((/** @type {any} */ input) => input.widget && input.link != null)
      .map((/** @type {any} */ input) => input.widget.name),
  );
  return Object.fromEntries(
    (node.widgets ?? []).map((/** @type {any} */ w) => [w.name, wired.has(w.name) ? undefined : w.value]),
  );
}
