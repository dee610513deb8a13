"""Reads the format that the front end saves, and resolves it as the front end does before it queues a prompt.

Followed: ComfyUI_frontend 1.49, `executionUtil.ts`, `ExecutableNodeDTO.ts`, `SubgraphNode.ts`. Compared with it
over the 475 workflows that ComfyUI 0.33 ships as templates: what differs is widgets that scripts add to nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .catalog import Catalog, InputSpec, NodeSpec
from .normal import Graph, GraphError, Link, Node, own_title, types_match

MUTED, BYPASSED = 2, 4
"""Values of a node's `mode`."""

NOT_RUN = ("Note", "MarkdownNote", "Reroute", "PrimitiveNode")
"""Nodes that exist in the front end alone; links are followed through the last two."""

CONTROL_VALUES = ("fixed", "increment", "decrement", "randomize", "increment-wrap")
OUTSIDE = "-10"
"""The origin that links inside a subgraph give when they come from its inputs."""

MAX_DEPTH = 32
"""Subgraphs in subgraphs; more can only be one that contains itself."""

Raw = Mapping[str, Any]
"""A node, subgraph or input as it stands in the file."""


@dataclass(frozen=True)
class Constant:
    """The far end of a link that leads to a value and not to a node."""

    value: Any


Source = Link | Constant | None
Seen = frozenset[tuple[str, Any]]


@dataclass(frozen=True)
class Scope:
    """One level of nesting: the workflow itself, or one instance of a subgraph."""

    prefix: str
    """Ids of the instances around it: `5:3:`."""
    nodes: Mapping[str, Raw]
    links: Mapping[Any, tuple[str, int]]
    """Link number -> (origin node, output slot)."""
    inputs: Sequence[Raw] = ()
    outputs: Sequence[Raw] = ()
    parent: Scope | None = None
    instance: Raw = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    """Values that the instance sets for the subgraph's inputs."""
    overrides: Mapping[tuple[str, str], Any] = field(default_factory=dict)
    """Values that the instance sets for widgets inside: (node, widget) -> value."""

    def overridden(self, raw: Raw) -> dict[str, Any]:
        """The values that the instance sets on one node inside."""
        return {name: value for (id, name), value in self.overrides.items() if id == str(raw["id"])}


def from_front_end(content: Mapping[str, Any], catalog: Catalog) -> Graph:
    """The nodes of `content` that run, with all links resolved.

    Raises:
        GraphError: if a link leads nowhere or in a circle, or nothing is left to run.
        KeyError, TypeError, IndexError, AttributeError: if `content` is not what the front end saves.
    """
    nodes = dict(_Reader(catalog, content).nodes(_scope("", content)))
    if not nodes:
        raise GraphError("workflow must have nodes that run, got none")
    return Graph(nodes, workflow=content)


def _scope(prefix: str, content: Raw) -> Scope:
    nodes = {str(node["id"]): node for node in content["nodes"]}
    return Scope(prefix, nodes, dict(_link(entry) for entry in content.get("links") or ()))


def _link(entry: Any) -> tuple[Any, tuple[str, int]]:
    """Read `[number, origin, slot, target, slot, type]`, or the same as an object inside subgraphs."""
    if isinstance(entry, dict):
        return entry["id"], (str(entry["origin_id"]), int(entry["origin_slot"]))
    return entry[0], (str(entry[1]), int(entry[2]))


class _Reader:
    """Flattens subgraphs and follows links through everything that does not run."""

    def __init__(self, catalog: Catalog, content: Raw) -> None:
        self.catalog = catalog
        definitions = (content.get("definitions") or {}).get("subgraphs") or ()
        self.subgraphs: dict[str, Raw] = {str(definition["id"]): definition for definition in definitions}

    def nodes(self, scope: Scope) -> Iterator[tuple[str, Node]]:
        """The nodes of `scope` that run, with those of the subgraphs in it."""
        for raw in scope.nodes.values():
            if raw.get("mode") in (MUTED, BYPASSED) or raw["type"] in NOT_RUN:
                continue
            if raw["type"] in self.subgraphs:
                yield from self.nodes(self.enter(scope, raw))
            else:
                node = self.node(scope, raw)
                yield node.id, node

    def node(self, scope: Scope, raw: Raw) -> Node:
        """One node with its constants and resolved links."""
        inputs = self.constants(scope, raw)
        for item in raw.get("inputs") or ():
            if item.get("link") is None:
                continue
            source = self.resolve(scope, item["link"], str(item.get("type", "*")), frozenset())
            if source is not None:
                inputs[item["name"]] = source.value if isinstance(source, Constant) else source
        title = own_title(raw.get("title"), raw["type"], self.catalog)
        return Node(f"{scope.prefix}{raw['id']}", raw["type"], inputs, title)

    def constants(self, scope: Scope, raw: Raw) -> dict[str, Any]:
        """The widget values of a node, those set on the subgraph around it included."""
        spec = self.catalog.get(raw["type"])
        if spec is None:
            return {}
        names = {widget.name for widget in _all_widgets(spec.inputs)}
        overridden = {name: value for name, value in scope.overridden(raw).items() if name in names}
        return widget_values(spec, raw) | overridden

    def enter(self, scope: Scope, instance: Raw) -> Scope:
        """The inside of a subgraph's instance."""
        definition = self.subgraphs[instance["type"]]
        prefix = f"{scope.prefix}{instance['id']}:"
        if prefix.count(":") > MAX_DEPTH:
            raise GraphError(f"subgraph {definition.get('name')!r} must not contain itself; unpack it first")
        values, overrides = _instance_values(instance, definition)
        return replace(
            _scope(prefix, definition),
            inputs=definition.get("inputs") or (),
            outputs=definition.get("outputs") or (),
            parent=scope,
            instance=instance,
            values=values | scope.overridden(instance),
            overrides=overrides,
        )

    def resolve(self, scope: Scope, link: Any, wanted: str, seen: Seen) -> Source:
        """Follow `link` to the output or value that it brings to an input of type `wanted`, if any."""
        if link not in scope.links:
            raise GraphError(f"link {link} must be in the list of links, got a workflow without it")
        if (scope.prefix, link) in seen:
            raise GraphError(f"graph must not have a cycle, got one through link {link}; remove that link")
        seen |= {(scope.prefix, link)}
        origin, slot = scope.links[link]
        if origin == OUTSIDE:
            return self.resolve_outside(scope, slot, wanted, seen)
        if origin not in scope.nodes:
            raise GraphError(f"link {link} must come from a node of the workflow, got node {origin}")
        return self.resolve_output(scope, scope.nodes[origin], slot, wanted, seen)

    def resolve_output(self, scope: Scope, raw: Raw, slot: int, wanted: str, seen: Seen) -> Source:
        """What output `slot` of a node gives: the node itself, or what it passes on."""
        mode, kind = raw.get("mode"), raw["type"]
        if mode == MUTED:
            return None
        if mode == BYPASSED or kind == "Reroute":
            link = _bypass(raw, slot, wanted) if mode == BYPASSED else _link_of(raw, 0)
            return None if link is None else self.resolve(scope, link, wanted, seen)
        if kind == "PrimitiveNode":
            saved = (raw.get("widgets_values") or [None])[0]
            return Constant(scope.overridden(raw).get("value", saved))
        if kind in self.subgraphs:
            inside = self.enter(scope, raw)
            links = (inside.outputs[slot].get("linkIds") or ()) if slot < len(inside.outputs) else ()
            return self.resolve(inside, links[0], wanted, seen) if links else None
        return Link(f"{scope.prefix}{raw['id']}", slot)

    def resolve_outside(self, scope: Scope, slot: int, wanted: str, seen: Seen) -> Source:
        """Follow input `slot` of a subgraph out to what its instance is linked to or set to."""
        if slot >= len(scope.inputs) or scope.parent is None:
            return None
        name = scope.inputs[slot]["name"]
        for item in scope.instance.get("inputs") or ():
            if item["name"] == name and item.get("link") is not None:
                return self.resolve(scope.parent, item["link"], wanted, seen)
        return self.shown_value(scope, name)

    def shown_value(self, scope: Scope, name: str) -> Constant | None:
        """What an instance shows for a subgraph's input: its own value, else the first widget's inside."""
        if name in scope.values:
            return Constant(scope.values[name])
        links = next((item.get("linkIds") or () for item in scope.inputs if item["name"] == name), ())
        for link in links:
            for raw in scope.nodes.values():
                for item in raw.get("inputs") or ():
                    if item.get("link") == link and item.get("widget"):
                        return self.inner_value(scope, raw, item["name"])
        return None

    def inner_value(self, scope: Scope, raw: Raw, name: str) -> Constant | None:
        """The value of a widget of a node, or of one that a nested subgraph shows."""
        if raw["type"] in self.subgraphs:
            return self.shown_value(self.enter(scope, raw), name)
        constants = self.constants(scope, raw)
        return Constant(constants[name]) if name in constants else None


def _link_of(raw: Raw, slot: int) -> Any:
    inputs = raw.get("inputs") or ()
    return inputs[slot].get("link") if slot < len(inputs) else None


def _bypass(raw: Raw, slot: int, wanted: str) -> Any:
    """The link that takes the place of output `slot` of a bypassed node: an input of the same type."""
    inputs = raw.get("inputs") or ()
    offered = str(raw["outputs"][slot].get("type", "*")) if slot < len(raw.get("outputs") or ()) else "*"
    if wanted == "*":
        return _link_of(raw, slot if slot < len(inputs) else 0)
    types = [str(item.get("type", "*")) for item in inputs]
    fits = [i for i, t in enumerate(types) if types_match(t, wanted) and types_match(t, offered)]
    exact = [i for i, t in enumerate(types) if t == wanted]
    best = [i for i in fits if i == slot] or exact or fits
    return _link_of(raw, best[0]) if best else None


def _instance_values(instance: Raw, definition: Raw) -> tuple[dict[str, Any], dict[tuple[str, str], Any]]:
    """The values that a subgraph's instance sets: for its inputs, and for widgets inside.

    Older front ends list the widgets shown on the instance in `proxyWidgets` (-1: the subgraph's own input).
    Newer ones show those whose input leads to a widget inside. `widgets_values` follows that order in both.
    """
    saved = instance.get("widgets_values") or ()
    shown = (instance.get("properties") or {}).get("proxyWidgets")
    if shown is None:
        shown = [("-1", name) for name in _promoted(definition)]
    pairs = [((str(s[0]), str(s[1])), v) for s, v in zip(shown, saved, strict=False) if v is not None]
    return (
        {name: value for (id, name), value in pairs if id == "-1"},
        {target: value for target, value in pairs if target[0] != "-1"},
    )


def _promoted(definition: Raw) -> list[str]:
    """The names of a subgraph's inputs that lead to a widget inside."""
    entries = [item for node in definition["nodes"] for item in node.get("inputs") or ()]
    links = {item.get("link") for item in entries if item.get("widget")}
    inputs = definition.get("inputs") or ()
    return [item["name"] for item in inputs if links.intersection(item.get("linkIds") or ())]


# --- widget values ----------------------------------------------------------------------------------------


def widget_values(spec: NodeSpec, raw: Raw) -> dict[str, Any]:
    """The constants of a node by the names of its inputs.

    Values are saved by position; newer front ends add them by name, which is used where both agree (scripts may
    have added widgets). A seed is followed by the value of its control widget, which belongs to the editor and is
    skipped: headless, a seed is what the file says. Widgets that were added since the file was saved have the
    value that a new widget has, or the one that keeps the file's meaning.
    """
    saved = raw.get("widgets_values") or []
    named = raw.get("widgets_values_named") or {}
    if isinstance(saved, dict) or (named and list(named.values()) == saved):
        values: _ByName | _ByPosition = _ByName(saved if isinstance(saved, dict) else named)
    else:
        values = _ByPosition(saved)
    return {name: value for name, value in _take_all(spec.inputs, values) if value is not None}


class _ByName:
    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def take(self, spec: InputSpec) -> Any:
        return self._values.get(spec.name)


class _ByPosition:
    def __init__(self, values: Sequence[Any]) -> None:
        self._values = list(values)

    def take(self, spec: InputSpec) -> Any:
        value = self._values.pop(0) if self._values else None
        if spec.control and self._skip(*CONTROL_VALUES) and spec.type == "COMBO":
            self._skip("")  # combos have a filter beside the control
        return value

    def _skip(self, *allowed: Any) -> bool:
        found = bool(self._values) and self._values[0] in allowed
        if found:
            self._values.pop(0)
        return found


def _take_all(inputs: Sequence[InputSpec], values: _ByName | _ByPosition) -> Iterator[tuple[str, Any]]:
    for spec in inputs:
        if spec.widget:
            taken = values.take(spec)
            value = _initial(spec) if taken is None else taken
            yield spec.name, value
            yield from _take_all(spec.branches.get(value, ()) if isinstance(value, str) else (), values)


def _initial(spec: InputSpec) -> Any:
    """The value of a widget that a file does not know: what it meant then, or what the front end gives a new widget."""
    if spec.before is not None:
        return spec.before
    if spec.default is not None:
        return spec.default
    if spec.options is not None:
        return spec.options[0] if spec.options else None
    return {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}.get(spec.type)


def _all_widgets(inputs: Sequence[InputSpec]) -> Iterator[InputSpec]:
    for spec in inputs:
        if spec.widget:
            yield spec
        for branch in spec.branches.values():
            yield from _all_widgets(branch)
