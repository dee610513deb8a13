"""Runs a checked graph: every node that an output needs, once, each after its sources."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from ...messages import one_line
from ..graph.catalog import Catalog, NodeSpec
from ..graph.normal import Graph, Node
from ..graph.validate import constants, execution_order
from ..schema import Hidden, HiddenHolder, NodeOutput, UIOutput
from ..terminal import close_bars
from .host import StandaloneHost, installed


class NodeError(RuntimeError):
    """A node failed; the cause is the exception it raised."""

    def __init__(self, node: Node, cause: BaseException) -> None:
        super().__init__(one_line(f"{node.label}: {one_line(cause)}"))


Announce = Callable[[int, int, str], None]
"""Called before a node runs, with its number from 1, how many there are, and its title."""


def run(graph: Graph, catalog: Catalog, host: StandaloneHost, announce: Announce | None = None) -> None:
    """Execute `graph`; `host.sections` gets the seconds that nodes took and the texts that they show.

    Nodes run under `torch.inference_mode()`, as in ComfyUI: one that trains leaves it for itself. The outputs
    of a node are dropped after its last reader, which keeps the peak of memory low.

    Raises:
        NodeError: if a node fails.
        Cancelled: if the user asked to stop.
    """
    nodes = execution_order(graph, catalog)
    readers = Counter(link.node for node in nodes for _, link in node.links())
    results: dict[str, tuple[Any, ...]] = {}
    with installed(host), torch.inference_mode():
        for number, node in enumerate(nodes, start=1):
            host.check_cancelled()
            host.title = node.title or catalog[node.class_type].title
            if announce is not None:
                announce(number, len(nodes), host.title)
            results[node.id] = _execute(node, graph, catalog[node.class_type], host, results)
            readers.subtract(link.node for _, link in node.links())
            for id in [id for id in results if readers[id] <= 0]:
                del results[id]


def _execute(
    node: Node, graph: Graph, spec: NodeSpec, host: StandaloneHost, results: dict[str, tuple[Any, ...]]
) -> tuple[Any, ...]:
    """Run one node on the results of others and return its outputs."""
    linked = {name: results[link.node][link.slot] for name, link in node.links()}
    started = time.perf_counter()
    try:
        output = _with_hidden(spec, node, graph).execute(**constants(node, spec), **linked)
        output = _checked(asyncio.run(output) if inspect.iscoroutine(output) else output, spec)
    except Exception as err:
        close_bars()
        raise NodeError(node, err) from err
    host.report({"node_seconds": {node.label: round(time.perf_counter() - started, 3)}})
    host.report(_shown_text(node, output))
    return output.args


def _with_hidden(spec: NodeSpec, node: Node, graph: Graph) -> Any:
    """A subclass of the node that holds its hidden inputs, so that the class itself keeps no state."""
    assert spec.node is not None
    schema = spec.node.GET_SCHEMA()
    asked = {*schema.hidden, *((Hidden.prompt, Hidden.extra_pnginfo) if spec.is_output else ())}
    given: dict[Hidden, Any] = {
        Hidden.unique_id: node.id,
        Hidden.prompt: graph.to_api(),
        Hidden.extra_pnginfo: {"workflow": graph.workflow} if graph.workflow else None,
    }
    holder = HiddenHolder(**{hidden.name: value for hidden, value in given.items() if hidden in asked})
    return type(spec.node.__name__, (spec.node,), {"hidden": holder})


def _checked(output: Any, spec: NodeSpec) -> NodeOutput:
    """What a node returned, if it has one value per socket."""
    output = NodeOutput() if output is None else output
    if not isinstance(output, NodeOutput):
        raise TypeError(f"execute must return io.NodeOutput, got {type(output).__name__}")
    if output.expand or output.block_execution:
        raise RuntimeError("execute must not expand or block, which only ComfyUI can do; give --comfyui DIR")
    if len(output.args) != len(spec.outputs):
        raise RuntimeError(f"execute must return {len(spec.outputs)} outputs, got {len(output.args)}")
    return output


def _shown_text(node: Node, output: NodeOutput) -> dict[str, Any]:
    """The report's entry for the text that the front end would show below the node."""
    shown = output.ui.as_dict() if isinstance(output.ui, UIOutput) else output.ui or {}
    lines = shown.get("text")
    return {"texts": {node.label: "\n".join(map(str, lines))}} if lines else {}
