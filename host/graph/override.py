"""`--set NODE.WIDGET=VALUE`: changes a constant of a graph without editing the file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .catalog import Catalog, InputSpec, NodeSpec
from .normal import Graph, GraphError, Node
from .validate import active_inputs, near, value_rule

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def override(graph: Graph, catalog: Catalog, setting: str) -> Graph:
    """`graph` with one widget set; a link to that widget gives way.

    The node is found by its id, else by its title or class, if only one node has that. The text after `=` is
    read as what the widget takes.

    Raises:
        GraphError: if the setting does not name one widget or its value does not fit.
    """
    target, equals, text = setting.partition("=")
    name, dot, widget = target.rpartition(".")
    if not equals or not dot or not name:
        raise GraphError(f"--set must be NODE.WIDGET=VALUE, got {setting!r}")
    node = _find(graph, catalog, name, setting)
    spec = catalog.get(node.class_type)
    if spec is None:
        raise GraphError(f"--set {setting}: {node.label} must be a known node")
    value = _read(_widget(node, spec, widget, setting), text, setting)
    changed = replace(node, inputs={**node.inputs, widget: value})
    return replace(graph, nodes={**graph.nodes, node.id: changed})


def _names(node: Node, catalog: Catalog) -> set[str]:
    spec = catalog.get(node.class_type)
    title = node.title or (spec.title if spec else "")
    return {title, title.removesuffix(" (Rollout)"), node.class_type}  # the names of before, too


def _find(graph: Graph, catalog: Catalog, name: str, setting: str) -> Node:
    nodes = list(graph.nodes.values())
    names = {node.id: _names(node, catalog) for node in nodes}
    found = [node for node in nodes if node.id == name] or [n for n in nodes if name in names[n.id]]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(node.id for node in found)
        raise GraphError(f"--set {setting}: {name!r} must name one node, got nodes {ids}; use the id")
    known = [text for texts in names.values() for text in texts]
    raise GraphError(f"--set {setting}: {name!r} must be a node's id, title or class{near(name, known)}")


def _widget(node: Node, spec: NodeSpec, widget: str, setting: str) -> InputSpec:
    widgets = {item.name: item for item in active_inputs(spec.inputs, node.inputs) if item.widget}
    if widget in widgets:
        return widgets[widget]
    names = f"it has {', '.join(widgets)}" if widgets else "it has none"
    raise GraphError(
        f"--set {setting}: {widget!r} must be a widget of {node.label}{near(widget, widgets)}; {names}"
    )


def _read(spec: InputSpec, text: str, setting: str) -> Any:
    value = _convert(spec, text)
    rule = value_rule(spec, value)
    if rule:
        raise GraphError(f"--set {setting}: {spec.name} {rule}, got {text!r}")
    return value


def _convert(spec: InputSpec, text: str) -> Any:
    """`text` as the type of `spec`, or as it is where it cannot be that."""
    if spec.type in ("INT", "FLOAT"):
        try:
            return int(text) if spec.type == "INT" else float(text)
        except ValueError:
            return text
    if spec.type == "BOOLEAN":
        return {**dict.fromkeys(TRUE, True), **dict.fromkeys(FALSE, False)}.get(text.lower(), text)
    if spec.multiple:
        return [_option(spec, part) for part in text.split(",")]
    return _option(spec, text)


def _option(spec: InputSpec, text: str) -> Any:
    return next((option for option in spec.options or () if str(option) == text), text)
