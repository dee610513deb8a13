// @ts-check
/** Finding nodes and the values of their widgets, in graphs with subgraphs. */

/**
 * The node that the host calls `id`: "12", or "3:12" for node 12 in the subgraph of node 3.
 * @param {HostGraph | null | undefined} graph
 * @param {string | number} id
 * @returns {HostNode | null}
 */
export function findNode(graph, id) {
  let node = null;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(Number.isNaN(Number(part)) ? part : Number(part)) ?? null;
    graph = node?.subgraph;
  }
  return node;
}

/**
 * All nodes of a graph and its subgraphs.
 * @param {HostGraph | null | undefined} graph
 * @returns {HostNode[]}
 */
export function allNodes(graph) {
  return (graph?.nodes ?? []).flatMap((node) => [node, ...allNodes(node.subgraph)]);
}

/**
 * The values of a node's widgets; undefined where a wire brings the value.
 * @param {HostNode} node
 * @returns {Record<string, unknown>}
 */
export function widgetValues(node) {
  const wired = new Set((node.inputs ?? []).flatMap((input) => (input.widget && input.link != null ? [input.widget.name] : [])));
  return Object.fromEntries((node.widgets ?? []).map((w) => [w.name, wired.has(w.name) ? undefined : w.value]));
}
