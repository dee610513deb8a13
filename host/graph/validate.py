"""Everything that can be known to be wrong before anything runs, one line per problem.

Stricter than ComfyUI where that is silent: a number given as text, an input that does not exist and one
broken branch beside good ones are errors here, because nobody watches a run in a terminal.
"""

from __future__ import annotations

import difflib
import inspect
import math
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from .catalog import Catalog, InputSpec, NodeSpec
from .normal import Graph, Link, Node, types_match

MIN_FREE_BYTES = 500 * 2**20
"""Free disk that a run asks for: states, LoRA, latents and pictures of a small model. A node that needs more
says so in its `validate_inputs`."""

LARGEST = 10**300
"""Size of a number that a widget can hold: a greater whole number is no float."""

FOREIGN_NODE = "give --comfyui DIR, an installation that has it, to run nodes of other packs"


def problems(graph: Graph, catalog: Catalog) -> list[str]:
    """What is wrong with `graph`; an empty list means that it can run.

    Structure first, then the inputs of every node that an output needs, then those nodes' own
    `validate_inputs`. A stage is reached only if the earlier ones are clean, so that no line is the consequence
    of another.
    """
    wrong = structure_problems(graph, catalog)
    if wrong:
        return wrong
    needed = execution_order(graph, catalog)
    wrong = [line for node in needed for line in _inputs(node, graph, catalog)]
    return wrong or [line for node in needed for line in _own_checks(node, catalog[node.class_type])]


def structure_problems(graph: Graph, catalog: Catalog, foreign_hint: str = FOREIGN_NODE) -> list[str]:
    """Unknown nodes, links to nowhere and cycles, and whether there is nothing to run."""
    wrong = [*_unknown(graph, catalog, foreign_hint), *_links(graph, catalog), *_cycle(graph)]
    if wrong or any(catalog[node.class_type].is_output for node in graph.nodes.values()):
        return wrong
    return ["graph must have an output node, got none; add Save Image or another that saves"]


def execution_order(graph: Graph, catalog: Catalog) -> list[Node]:
    """The nodes that the output nodes need, each after those it depends on.

    Raises:
        graphlib.CycleError: if there is no such order.
    """
    pending = [node.id for node in graph.nodes.values() if catalog[node.class_type].is_output]
    sources: dict[str, list[str]] = {}
    while pending:
        id = pending.pop()
        if id not in sources:
            sources[id] = [link.node for _, link in graph.nodes[id].links()]
            pending += sources[id]
    in_file_order = {id: sources[id] for id in graph.nodes if id in sources}
    return [graph.nodes[id] for id in TopologicalSorter(in_file_order).static_order()]


def _unknown(graph: Graph, catalog: Catalog, hint: str) -> Iterator[str]:
    for node in graph.nodes.values():
        if node.class_type not in catalog:
            like = near(node.class_type, catalog)
            yield f"{node.label}: {node.class_type} must be a known node{like}; {hint}"


def _links(graph: Graph, catalog: Catalog) -> Iterator[str]:
    for node in graph.nodes.values():
        for name, link in node.links():
            source = graph.nodes.get(link.node)
            if source is None:
                yield f"{node.label}: {name} must be linked to a node of the graph, got node {link.node}"
            elif source.class_type in catalog:
                outputs = catalog[source.class_type].outputs
                if not 0 <= link.slot < len(outputs):
                    rule = f"must be linked to one of the {len(outputs)} outputs of {source.label}"
                    yield f"{node.label}: {name} {rule}, got output {link.slot}"


def _cycle(graph: Graph) -> Iterator[str]:
    sources = {
        node.id: [link.node for _, link in node.links() if link.node in graph.nodes]
        for node in graph.nodes.values()
    }
    try:
        TopologicalSorter(sources).prepare()
    except CycleError as err:
        path = " -> ".join(f"{id} ({graph.nodes[id].class_type})" for id in err.args[1])
        yield f"graph must not have a cycle, got {path}; remove one of these links"


def _inputs(node: Node, graph: Graph, catalog: Catalog) -> Iterator[str]:
    specs = {spec.name: spec for spec in active_inputs(catalog[node.class_type].inputs, node.inputs)}
    for name, spec in specs.items():
        if name in node.inputs:
            rule = _broken_rule(spec, node.inputs[name], graph, catalog)
        elif spec.required:
            given = "given" if spec.widget else f"linked to an output of type {spec.type}"
            rule = f"must be {given}, got nothing"
        else:
            continue
        if rule:
            yield f"{node.label}: {name} {rule}"
    for name in node.inputs:
        if name not in specs:
            yield f"{node.label}: {name} must be an input of the node{near(name, specs)}; remove it"


def active_inputs(specs: Iterable[InputSpec], values: Mapping[str, Any]) -> Iterator[InputSpec]:
    """The inputs that a node has with these values: dynamic combos add some."""
    for spec in specs:
        yield spec
        chosen = values.get(spec.name)
        if spec.branches and isinstance(chosen, str):
            yield from active_inputs(spec.branches.get(chosen, ()), values)


def _broken_rule(spec: InputSpec, value: Any, graph: Graph, catalog: Catalog) -> str:
    if isinstance(value, Link):
        source = graph.nodes[value.node]
        offered = catalog[source.class_type].outputs[value.slot].type
        if types_match(offered, spec.type):
            return ""
        return f"must be linked to an output of type {spec.type}, got {offered} from {source.label}"
    if not spec.widget:
        return (
            "" if spec.type == "*" else f"must be linked to an output of type {spec.type}, got {_show(value)}"
        )
    rule = value_rule(spec, value)
    return f"{rule}, got {_show(value)}" if rule else ""


def value_rule(spec: InputSpec, value: Any) -> str:
    """The rule that `value` breaks as a constant of `spec` ("must be at least 1"), or nothing."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and isinstance(value, int) and abs(value) > LARGEST:
        return f"must be at most {LARGEST:.0e}"
    if spec.type == "INT" and not (number and float(value).is_integer()):
        return "must be a whole number"
    if spec.type == "FLOAT" and not (number and math.isfinite(value)):
        return "must be a number"
    if spec.type == "STRING" and not isinstance(value, str):
        return "must be text"
    if spec.type == "BOOLEAN" and not isinstance(value, bool):
        return "must be true or false"
    if spec.options is not None and spec.type.startswith("COM"):
        chosen = value if spec.multiple and isinstance(value, list) else [value]
        return "" if all(item in spec.options for item in chosen) else f"must be {_one_of(spec.options)}"
    return _range_rule(spec, value) if number else ""


def _range_rule(spec: InputSpec, value: float) -> str:
    low, high = spec.min, spec.max
    if (low is None or value >= low) and (high is None or value <= high):
        return ""
    if low is not None and high is not None:
        return f"must be between {low} and {high}"
    return f"must be at least {low}" if low is not None else f"must be at most {high}"


def _one_of(options: tuple[Any, ...]) -> str:
    shown = ", ".join(map(str, options[:12])) or "its options, of which there are none"
    return f"one of {shown}{f' and {len(options) - 12} more' if len(options) > 12 else ''}"


def coerce(spec: InputSpec, value: Any) -> Any:
    """A valid constant in the type that the node gets: 3.0 as INT is 3, 1 as FLOAT is 1.0."""
    return {"INT": int, "FLOAT": float}[spec.type](value) if spec.type in ("INT", "FLOAT") else value


def constants(node: Node, spec: NodeSpec) -> dict[str, Any]:
    """The node's constants as it gets them, in their types."""
    given = [(item, node.inputs[item.name]) for item in spec.inputs if item.name in node.inputs]
    return {item.name: coerce(item, value) for item, value in given if not isinstance(value, Link)}


def _own_checks(node: Node, spec: NodeSpec) -> Iterator[str]:
    """Call the node's `validate_inputs` as ComfyUI does: only the inputs it names, None for linked ones."""
    check = spec.node and spec.node.validate_inputs
    if not check:
        return
    given = {name: None for name, _ in node.links()} | constants(node, spec)
    parameters = inspect.signature(check).parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    named = {parameter.name for parameter in parameters}
    try:
        verdict = check(**{name: value for name, value in given.items() if takes_all or name in named})
    except (ValueError, TypeError, OSError) as err:
        verdict = str(err) or type(err).__name__
    if verdict is not True:
        yield f"{node.label}: {' '.join(str(verdict).split()) if verdict else 'inputs must be valid'}"


def destination_problems(out: Path) -> list[str]:
    """Why results could not be written to `out`, which need not exist yet. Leaves nothing behind."""
    parent = next(path for path in (out, *out.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as err:
        return [f"--out must be a folder that can be written, got {out} ({err.strerror}); choose another"]
    free = shutil.disk_usage(parent).free
    if free < MIN_FREE_BYTES:
        need, have = (f"{size / 2**20:.0f} MB" for size in (MIN_FREE_BYTES, free))
        return [f"--out must have {need} of free disk, got {have} in {out}; free some or choose another"]
    return []


def near(name: str, known: Iterable[str]) -> str:
    """A hint at names like `name`, to be put into a message: " (like steps?)", or nothing."""
    by_lower = {item.lower(): item for item in known}
    found = difflib.get_close_matches(str(name)[:80].lower(), by_lower, n=2, cutoff=0.7)
    return f" (like {' or '.join(by_lower[item] for item in found)}?)" if found else ""


def _show(value: Any) -> str:
    if isinstance(value, int) and abs(value) > LARGEST:  # too many digits for Python to print
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
