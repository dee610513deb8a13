"""The part of a workflow that trains: all that ranks have to run which do not save and show."""

from __future__ import annotations

from dataclasses import replace

from .catalog import Catalog
from .normal import Graph, Link, Node

RUN = "ROLLOUT_RUN"
"""Socket type of a run's handle; whatever gives one out opens or trains a run."""
SHOWN = "PreviewAny"


def training_alone(graph: Graph, catalog: Catalog) -> Graph:
    """The nodes that open or train a run and those they need, and after each last one a Preview as Text.

    It has no node that saves or shows anything else; the graph as it is if nothing trains in it.
    """
    handles = {
        id: slot
        for id, node in graph.nodes.items()
        for slot, output in enumerate(catalog[node.class_type].outputs)
        if output.type == RUN
    }
    needed: set[str] = set()
    pending = list(handles)
    while pending:
        id = pending.pop()
        if id not in needed:
            needed.add(id)
            pending += [link.node for _, link in graph.nodes[id].links()]
    nodes = {id: node for id, node in graph.nodes.items() if id in needed}
    gone_on = {link.node for id in handles for _, link in graph.nodes[id].links() if link.node in handles}
    ends = [id for id in handles if id not in gone_on]
    for id in ends:
        text = len(catalog[graph.nodes[id].class_type].outputs) - 1  # the summary
        shown = Node(f"{id}-end", SHOWN, {"source": Link(id, text)})
        nodes[shown.id] = shown
    return replace(graph, nodes=nodes) if ends else graph
