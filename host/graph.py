"""Reads a workflow into one normal form: the front end's file format, the API format, or a PNG with either.

The front end's format (`nodes` and `links`) stores what one sees: widget values by position, links by
number, muted and bypassed nodes, subgraphs. Here it is resolved as the front end does it before it queues a
prompt (ComfyUI_frontend 1.49, `executionUtil.ts`, `ExecutableNodeDTO.ts`). The API format is what it sends
then: values and links by name. A PNG saved by ComfyUI carries both: the API format wins, because it is what
really made the picture and needs no guess about positions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from .catalog import Catalog, InputSpec, NodeSpec

MUTED, BYPASSED = 2, 4
"""Values of a node's `mode` in the front end's format."""

DECORATION = ("Note", "MarkdownNote")
CONTROL_VALUES = ("fixed", "increment", "decrement", "randomize", "increment-wrap")
SUBGRAPH_INPUT = -10
"""The id that links inside a subgraph give as their origin when they come from outside."""


class GraphError(ValueError):
    """A workflow that cannot be used. `problems` has one line for each thing that is wrong."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


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
        """Return how messages call the node."""
        return f"node {self.id} ({self.class_type}{f', {self.title!r}' if self.title else ''})"

    def links(self) -> Iterator[tuple[str, Link]]:
        """Yield the inputs that are links."""
        return ((name, value) for name, value in self.inputs.items() if isinstance(value, Link))


@dataclass(frozen=True)
class Graph:
    """A workflow in normal form."""

    nodes: Mapping[str, Node]
    workflow: Mapping[str, Any] | None = field(default=None, compare=False)
    """The file in the front end's format, if it was one: saved pictures carry it."""

    def to_api(self) -> dict[str, Any]:
        """Return the graph in the API format."""
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


def read_file(path: Path) -> Mapping[str, Any]:
    """Return the workflow in a JSON or PNG file, in whichever format it is.

    Raises:
        GraphError: if there is none.
    """
    try:
        data = path.read_bytes()
    except OSError as err:
        raise GraphError(f"workflow must be a readable file, got {path} ({err.strerror})") from err
    text = _png_text(path) if data.startswith(b"\x89PNG") else data.decode("utf-8", errors="replace")
    if not text.strip():
        raise GraphError(f"workflow must not be empty, got {path}; save or export it again")
    try:
        content = json.loads(text)
    except json.JSONDecodeError as err:
        where = f"line {err.lineno}, column {err.colno}: {err.msg}"
        raise GraphError(f"workflow must be JSON or a PNG with one, got {path} ({where})") from err
    if not isinstance(content, dict):
        raise GraphError(f"workflow must be a JSON object, got a {type(content).__name__} in {path}")
    return content


def _png_text(path: Path) -> str:
    try:
        with Image.open(path) as image:
            image.load()  # the text may stand after the pixels
            chunks = image.info
    except OSError as err:
        raise GraphError(f"workflow must be a readable PNG, got {path} ({err})") from err
    for key in ("prompt", "workflow"):
        if chunks.get(key):
            return str(chunks[key])
    raise GraphError(f"workflow must be inside the PNG as `prompt` or `workflow`, got neither in {path}")


def parse(content: Mapping[str, Any], catalog: Catalog) -> Graph:
    """Return the normal form of a workflow in either format.

    Widget values of nodes that `catalog` lacks are lost, as they have no names; `validate` reports those.

    Raises:
        GraphError: if the structure is broken. Whether the nodes make sense is checked by `validate`.
    """
    if isinstance(content.get("nodes"), list):
        try:
            return _from_front_end(content, catalog)
        except (KeyError, TypeError, IndexError, AttributeError) as err:
            what = f"{type(err).__name__}: {err}"
            raise GraphError(f"workflow must be as the front end saves it, got {what}") from err
    nodes = content["prompt"] if isinstance(content.get("prompt"), dict) else content
    if not nodes:
        raise GraphError("workflow must have nodes, got none")
    return _from_api(nodes, catalog)


# --- the API format ---------------------------------------------------------------------------------------


def _from_api(content: Mapping[str, Any], catalog: Catalog) -> Graph:
    problems = [
        f"node {key!r} must be an object with class_type and inputs, got {_short(entry)}"
        for key, entry in content.items()
        if not (isinstance(entry, dict) and isinstance(entry.get("class_type"), str))
        or not isinstance(entry.get("inputs", {}), dict)
    ]
    if problems:
        raise GraphError(*problems)
    return Graph({str(key): _node_from_api(str(key), entry, catalog) for key, entry in content.items()})


def _node_from_api(id: str, entry: Mapping[str, Any], catalog: Catalog) -> Node:
    title = (entry.get("_meta") or {}).get("title")
    inputs = {name: _value_from_api(value) for name, value in entry.get("inputs", {}).items()}
    return Node(id, entry["class_type"], inputs, _own_title(title, entry["class_type"], catalog))


def _own_title(title: Any, class_type: str, catalog: Catalog) -> str:
    """Return a node's title if it is not just the name of its class."""
    usual = {None, "", class_type, catalog[class_type].title if class_type in catalog else ""}
    return "" if title in usual else str(title)


def _value_from_api(value: Any) -> Any:
    if isinstance(value, dict) and "__value__" in value:
        return value["__value__"]
    if isinstance(value, list) and len(value) == 2 and isinstance(value[1], int):
        return Link(str(value[0]), value[1])
    return value


# --- the front end's format -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Constant:
    """The far end of a link that leads to a value and not to a node."""

    value: Any


@dataclass(frozen=True)
class _Scope:
    """One level of nesting: the workflow itself, or one instance of a subgraph."""

    prefix: str
    nodes: Mapping[str, Mapping[str, Any]]
    links: Mapping[Any, tuple[str, int]]
    """Link number -> (origin node, output slot)."""
    inputs: Sequence[Mapping[str, Any]] = ()
    """The subgraph's own inputs."""
    outputs: Sequence[Mapping[str, Any]] = ()
    parent: _Scope | None = None
    instance: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    """Values set on the instance for the subgraph's inputs."""
    overrides: Mapping[tuple[str, str], Any] = field(default_factory=dict)
    """Values set on the instance for widgets inside: (node, widget) -> value."""


def _from_front_end(content: Mapping[str, Any], catalog: Catalog) -> Graph:
    reader = _FrontEndReader(catalog, content)
    root = _scope("", content)
    nodes = dict(reader.nodes(root))
    if not nodes:
        raise GraphError("workflow must have nodes that run, got none")
    return Graph(nodes, workflow=content)


def _scope(prefix: str, content: Mapping[str, Any]) -> _Scope:
    nodes = {str(node["id"]): node for node in content["nodes"]}
    return _Scope(prefix, nodes, dict(_link(entry) for entry in content.get("links") or ()))


def _link(entry: Any) -> tuple[Any, tuple[str, int]]:
    """Read `[number, origin, slot, target, slot, type]`, or the same as an object inside subgraphs."""
    if isinstance(entry, dict):
        return entry["id"], (str(entry["origin_id"]), int(entry["origin_slot"]))
    return entry[0], (str(entry[1]), int(entry[2]))


class _FrontEndReader:
    """Flattens subgraphs and follows links through everything that does not run."""

    def __init__(self, catalog: Catalog, content: Mapping[str, Any]) -> None:
        self.catalog = catalog
        definitions = (content.get("definitions") or {}).get("subgraphs") or ()
        self.subgraphs = {str(definition["id"]): definition for definition in definitions}

    def nodes(self, scope: _Scope) -> Iterator[tuple[str, Node]]:
        """Yield the nodes of `scope` that run, with those of the subgraphs in it."""
        for raw in scope.nodes.values():
            kind = raw["type"]
            if raw.get("mode") in (MUTED, BYPASSED) or kind in (*DECORATION, "Reroute", "PrimitiveNode"):
                continue
            if kind in self.subgraphs:
                yield from self.nodes(self.enter(scope, raw))
            else:
                node = self.node(scope, raw)
                yield node.id, node

    def enter(self, scope: _Scope, instance: Mapping[str, Any]) -> _Scope:
        """Return the inside of a subgraph's instance."""
        definition = self.subgraphs[instance["type"]]
        prefix = f"{scope.prefix}{instance['id']}:"
        if prefix.count(":") > 32:
            raise GraphError(f"subgraph {definition.get('name')!r} must not contain itself; unpack it first")
        values, overrides = _instance_values(scope, instance)
        return replace(
            _scope(prefix, definition),
            inputs=definition.get("inputs") or (),
            outputs=definition.get("outputs") or (),
            parent=scope,
            instance=instance,
            values=values,
            overrides=overrides,
        )

    def node(self, scope: _Scope, raw: Mapping[str, Any]) -> Node:
        spec = self.catalog.get(raw["type"])
        inputs = widget_values(spec, raw) if spec else {}
        shown = {s.name for s in _all_widgets(spec.inputs)} if spec else set()
        inputs |= {name: v for name, v in _overrides(scope, raw).items() if name in shown}
        for item in raw.get("inputs") or ():
            if item.get("link") is None:
                continue
            source = self.resolve(scope, item["link"], str(item.get("type", "*")), frozenset())
            if source is not None:
                inputs[item["name"]] = source.value if isinstance(source, _Constant) else source
        title = _own_title(raw.get("title"), raw["type"], self.catalog)
        return Node(f"{scope.prefix}{raw['id']}", raw["type"], inputs, title)

    def resolve(
        self, scope: _Scope, link: Any, wanted: str, seen: frozenset[tuple[str, Any]]
    ) -> Link | _Constant | None:
        """Follow `link` to the output or value that it brings to an input of type `wanted`, if any."""
        if link not in scope.links:
            raise GraphError(f"link {link} must be in the list of links, got a workflow without it")
        if (scope.prefix, link) in seen:
            raise GraphError(f"graph must not have a cycle, got one through link {link}; remove that link")
        seen |= {(scope.prefix, link)}
        origin, slot = scope.links[link]
        if origin == str(SUBGRAPH_INPUT):
            return self.resolve_outside(scope, slot, wanted, seen)
        raw = scope.nodes.get(origin)
        if raw is None:
            raise GraphError(f"link {link} must come from a node of the workflow, got node {origin}")
        mode, kind = raw.get("mode"), raw["type"]
        if mode == MUTED:
            return None
        if mode == BYPASSED:
            passed = _bypass(raw, slot, wanted)
            return None if passed is None else self.resolve(scope, passed, wanted, seen)
        if kind == "Reroute":
            passed = _link_of(raw, 0)
            return None if passed is None else self.resolve(scope, passed, wanted, seen)
        if kind == "PrimitiveNode":
            return _Constant(scope.overrides.get((origin, "value"), (raw.get("widgets_values") or [None])[0]))
        if kind in self.subgraphs:
            return self.resolve_inside(self.enter(scope, raw), slot, wanted, seen)
        return Link(f"{scope.prefix}{origin}", slot)

    def resolve_outside(
        self, scope: _Scope, slot: int, wanted: str, seen: frozenset[tuple[str, Any]]
    ) -> Link | _Constant | None:
        """Follow input number `slot` of a subgraph out to what its instance is linked to or set to."""
        name = scope.inputs[slot]["name"] if slot < len(scope.inputs) else ""
        for item in scope.instance.get("inputs") or ():
            if item["name"] == name and item.get("link") is not None and scope.parent:
                return self.resolve(scope.parent, item["link"], wanted, seen)
        return _Constant(scope.values[name]) if name in scope.values else None

    def resolve_inside(
        self, scope: _Scope, slot: int, wanted: str, seen: frozenset[tuple[str, Any]]
    ) -> Link | _Constant | None:
        """Follow output number `slot` of a subgraph to the node inside that feeds it."""
        links = (scope.outputs[slot].get("linkIds") or ()) if slot < len(scope.outputs) else ()
        return self.resolve(scope, links[0], wanted, seen) if links else None


def _link_of(raw: Mapping[str, Any], slot: int) -> Any:
    inputs = raw.get("inputs") or ()
    return inputs[slot].get("link") if slot < len(inputs) else None


def _bypass(raw: Mapping[str, Any], slot: int, wanted: str) -> Any:
    """Return the link that takes the place of output `slot` of a bypassed node: an input of the same type."""
    inputs = raw.get("inputs") or []
    offered = str(raw["outputs"][slot].get("type", "*")) if slot < len(raw.get("outputs") or ()) else "*"
    if wanted == "*":
        return _link_of(raw, slot if slot < len(inputs) else 0)
    types = [str(item.get("type", "*")) for item in inputs]
    fits = [i for i, t in enumerate(types) if types_match(t, wanted) and types_match(t, offered)]
    exact = [i for i, t in enumerate(types) if t == wanted]
    best = [i for i in fits if i == slot] or exact or fits
    return _link_of(raw, best[0]) if best else None


def _instance_values(
    scope: _Scope, instance: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[tuple[str, str], Any]]:
    """Return the values that a subgraph's instance sets: for its inputs, and for widgets inside.

    Older front ends list the widgets shown on the instance in `proxyWidgets` (-1: the subgraph's own input),
    newer ones give every such widget an input; `widgets_values` follows that order in both.
    """
    saved = instance.get("widgets_values") or ()
    proxies = (instance.get("properties") or {}).get("proxyWidgets")
    if proxies is None:
        shown = [item["name"] for item in instance.get("inputs") or () if item.get("widget")]
        proxies = [("-1", name) for name in shown]
    pairs = [((str(p[0]), str(p[1])), v) for p, v in zip(proxies, saved, strict=False) if v is not None]
    return (
        {name: v for (id, name), v in pairs if id == "-1"} | _overrides(scope, instance),
        {target: v for target, v in pairs if target[0] != "-1"},
    )


def _overrides(scope: _Scope, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that the surrounding instance sets on this node."""
    return {name: value for (id, name), value in scope.overrides.items() if id == str(raw["id"])}


def widget_values(spec: NodeSpec, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constants of a node in the front end's format, by the names of its inputs.

    Values are saved by position. A seed is followed by the value of its control widget, which belongs to the
    editor and is skipped: headless, a seed is what the file says. Widgets added since the file was saved keep
    their defaults.
    """
    saved = raw.get("widgets_values") or []
    named = raw.get("widgets_values_named") or {}
    if isinstance(saved, dict) or (named and list(named.values()) == saved):
        by_name = saved if isinstance(saved, dict) else named
        return {s.name: by_name[s.name] for s in _all_widgets(spec.inputs) if s.name in by_name}
    values = dict(_positional(spec.inputs, _Reader(saved)))
    defaults = {s.name: s.default for s in spec.inputs if s.widget and s.required and s.default is not None}
    return defaults | {name: value for name, value in values.items() if value is not None}


def _all_widgets(inputs: Sequence[InputSpec]) -> Iterator[InputSpec]:
    for spec in inputs:
        if spec.widget:
            yield spec
        for branch in spec.branches.values():
            yield from _all_widgets(branch)


class _Reader:
    """Takes values off a list one by one."""

    def __init__(self, values: Sequence[Any]) -> None:
        self._values = list(values)

    def __bool__(self) -> bool:
        return bool(self._values)

    def take(self) -> Any:
        return self._values.pop(0)

    def skip(self, *allowed: Any) -> bool:
        """Drop the next value if it is one of `allowed`."""
        found = bool(self._values) and self._values[0] in allowed
        if found:
            self._values.pop(0)
        return found


def _positional(inputs: Sequence[InputSpec], values: _Reader) -> Iterator[tuple[str, Any]]:
    for spec in inputs:
        if not spec.widget:
            continue
        if not values:
            return
        value = values.take()
        yield spec.name, value
        if spec.control and values.skip(*CONTROL_VALUES) and spec.type == "COMBO":
            values.skip("")  # combos have a filter beside the control
        yield from _positional(spec.branches.get(value, ()) if isinstance(value, str) else (), values)


def types_match(offered: str, wanted: str) -> bool:
    """Tell whether an output of type `offered` may feed one of type `wanted`: a type in common will do."""
    a, b = set(offered.upper().split(",")), set(wanted.upper().split(","))
    return "*" in a | b or bool(a & b)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
