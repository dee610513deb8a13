"""A workflow in normal form: nodes by id, each input a constant or a link. The API format is this, as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...messages import one_line
from .catalog import Catalog


class GraphError(ValueError):
    """A workflow that cannot be used. `problems` has one printable line for each thing that is wrong."""

    def __init__(self, *problems: str) -> None:
        self.problems = tuple(one_line(problem) for problem in problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True)
class Link:
    """An input that takes output number `slot` of `node`."""

    node: str
    slot: int


@dataclass(frozen=True)
class Node:
    """A node of a graph; each input is a constant or a `Link`."""

    id: str
    class_type: str
    inputs: Mapping[str, Any]
    title: str = ""
    """What the user called the node, if anything."""

    @property
    def label(self) -> str:
        """How messages call the node."""
        return f"node {self.id} ({self.class_type}{f', {self.title!r}' if self.title else ''})"

    def links(self) -> Iterator[tuple[str, Link]]:
        """The inputs that are links."""
        return ((name, value) for name, value in self.inputs.items() if isinstance(value, Link))


@dataclass(frozen=True)
class Graph:
    """A workflow in normal form."""

    nodes: Mapping[str, Node]
    workflow: Mapping[str, Any] | None = field(default=None, compare=False)
    """The file in the front end's format, if it was one: saved pictures carry it."""

    def to_api(self) -> dict[str, Any]:
        """The graph in the API format."""
        return {node.id: _api_node(node) for node in self.nodes.values()}


def _api_node(node: Node) -> dict[str, Any]:
    inputs = {name: _api_value(value) for name, value in node.inputs.items()}
    return {
        "class_type": node.class_type,
        "inputs": inputs,
        "_meta": {"title": node.title or node.class_type},
    }


def _api_value(value: Any) -> Any:
    if isinstance(value, Link):
        return [value.node, value.slot]
    return {"__value__": value} if isinstance(value, list) else value


def from_api(content: Mapping[str, Any], catalog: Catalog) -> Graph:
    """Read the API format: `{id: {class_type, inputs, _meta}}`, a link as `[id, output]`.

    Missing constants get their defaults, so that a file from before a widget was added still runs.

    Raises:
        GraphError: if an entry is no node.
    """
    problems = [
        f"node {key!r} must be an object with class_type and inputs, got {_short(entry)}"
        for key, entry in content.items()
        if not (isinstance(entry, dict) and isinstance(entry.get("class_type"), str))
        or not isinstance(entry.get("inputs", {}), dict)
    ]
    if problems:
        raise GraphError(*problems)
    return Graph({str(key): _read_node(str(key), entry, catalog) for key, entry in content.items()})


def _read_node(id: str, entry: Mapping[str, Any], catalog: Catalog) -> Node:
    meta = entry.get("_meta")
    title = meta.get("title") if isinstance(meta, dict) else None
    inputs = {name: _read_value(value) for name, value in entry.get("inputs", {}).items()}
    specs = catalog[entry["class_type"]].inputs if entry["class_type"] in catalog else ()
    defaults = {s.name: s.default for s in specs if s.widget and s.required and s.default is not None}
    return Node(id, entry["class_type"], defaults | inputs, own_title(title, entry["class_type"], catalog))


def own_title(title: Any, class_type: str, catalog: Catalog) -> str:
    """A node's title if it is not just the name of its class."""
    usual = (class_type, catalog[class_type].title if class_type in catalog else "")
    return title if isinstance(title, str) and title not in usual else ""


def _read_value(value: Any) -> Any:
    if isinstance(value, dict) and "__value__" in value:
        return value["__value__"]
    if isinstance(value, list) and len(value) == 2 and type(value[1]) is int:
        return Link(str(value[0]), value[1])
    return value


def types_match(offered: str, wanted: str) -> bool:
    """Whether an output of type `offered` may feed one of type `wanted`: a type in common will do."""
    a, b = set(offered.upper().split(",")), set(wanted.upper().split(","))
    return "*" in a | b or bool(a & b)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
