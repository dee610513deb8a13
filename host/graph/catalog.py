"""What nodes look like from outside: names, types, widgets, ranges. From our classes or from a running host.

Reading a workflow, checking it and listing nodes need nothing but this, so all three work for the nodes of
a ComfyUI installation (its `/object_info`) as they do for ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..schema import ComfyNode, Input, WidgetInput

PLAIN_WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3", "WEBCAM", "MARKDOWN")
DRAWN_WIDGETS = ("TEXTAREA", "COLOR", "CURVE", "RANGE", "BOUNDING_BOX", "IMAGECOMPARE", "CHART", "GALLERIA")
WIDGET_TYPES = frozenset((*PLAIN_WIDGETS, *DRAWN_WIDGETS, "PAINTER", "COMPOSITOR"))
"""Input types that the front end draws as widgets, and whose values it saves in `widgets_values`."""

SEED_NAMES = ("seed", "noise_seed")
"""INT inputs of these names get a control widget even if the schema does not ask for one."""


@dataclass(frozen=True)
class InputSpec:
    """One input of a node."""

    name: str
    type: str
    """Socket type, or several joined by commas; `*` takes everything."""
    required: bool = True
    widget: bool = False
    """Has a widget, so that a constant may be given. Without one only a link will do."""
    default: Any = None
    min: float | None = None
    max: float | None = None
    options: tuple[Any, ...] | None = None
    """Allowed values of a COMBO; None if they are not known before the node runs (uploaded files)."""
    multiple: bool = False
    """A COMBO that takes a list of options."""
    control: bool = False
    """Followed by a `control_after_generate` widget in saved workflows."""
    branches: Mapping[str, tuple[InputSpec, ...]] = field(default_factory=dict)
    """Further inputs that appear when the value is the key (the host's dynamic combos)."""
    tooltip: str = ""
    before: Any = None
    """What a workflow means that was saved before this widget was added, where that is not its default."""


SAVED_BEFORE = "saved_before"
"""Setting of an input that says so."""


@dataclass(frozen=True)
class OutputSpec:
    """One output of a node."""

    name: str
    type: str


@dataclass(frozen=True)
class NodeSpec:
    """One node class."""

    class_type: str
    title: str
    inputs: tuple[InputSpec, ...]
    """In the order of the widgets: required ones first, as the front end lays them out."""
    outputs: tuple[OutputSpec, ...]
    is_output: bool
    node: type[ComfyNode] | None = None
    """The class, if it can run here."""
    description: str = ""

    def input(self, name: str) -> InputSpec | None:
        """The input called `name`."""
        return next((spec for spec in self.inputs if spec.name == name), None)


Catalog = Mapping[str, NodeSpec]
"""Node classes by the name that workflows use."""


def from_nodes(nodes: Iterable[type[ComfyNode]]) -> dict[str, NodeSpec]:
    """Describe node classes.

    Raises:
        ValueError: if a schema is invalid or asks for list processing, which only ComfyUI does.
    """
    specs = [_node_spec(node) for node in nodes]
    return {spec.class_type: spec for spec in specs}


def _node_spec(node: type[ComfyNode]) -> NodeSpec:
    schema = node.GET_SCHEMA()
    # Nodes with list inputs take ComfyUI's own MODEL and the like, and say so themselves when they run here.
    if any(output.is_output_list for output in schema.outputs):
        raise ValueError(f"{schema.node_id} must not use list outputs, which only ComfyUI maps over")
    inputs = [_input_spec(item) for item in schema.inputs]
    return NodeSpec(
        class_type=schema.node_id,
        title=schema.display_name or schema.node_id,
        inputs=_widget_order(inputs),
        outputs=tuple(OutputSpec(o.display_name or o.io_type, o.io_type) for o in schema.outputs),
        is_output=schema.is_output_node,
        node=node,
        description=schema.description,
    )


def _input_spec(item: Input) -> InputSpec:
    spec = InputSpec(item.id, item.io_type, required=not item.optional, tooltip=item.tooltip or "")
    if not isinstance(item, WidgetInput) or item.force_input:
        return spec
    options = getattr(item, "options", None)
    control = getattr(item, "control_after_generate", None)
    return replace(
        spec,
        widget=True,
        default=item.default,
        min=getattr(item, "min", None),
        max=getattr(item, "max", None),
        options=tuple(options) if options and getattr(item, "upload", None) is None else None,
        control=_has_control(item.id, item.io_type, control),
        before=item.extra_dict.get(SAVED_BEFORE),
    )


def _widget_order(inputs: Sequence[InputSpec]) -> tuple[InputSpec, ...]:
    return tuple(sorted(inputs, key=lambda spec: not spec.required))


def _has_control(name: str, io_type: str, asked: Any) -> bool:
    """Whether the front end adds a control widget: asked for, or an INT with a seed's name."""
    return bool(asked) if asked is not None else io_type == "INT" and name in SEED_NAMES


def from_object_info(info: Mapping[str, Mapping[str, Any]]) -> dict[str, NodeSpec]:
    """Describe the nodes of a running ComfyUI from its `/object_info`."""
    return {class_type: _foreign_node(class_type, entry) for class_type, entry in info.items()}


def _foreign_node(class_type: str, entry: Mapping[str, Any]) -> NodeSpec:
    names = entry.get("output_name") or entry["output"]
    return NodeSpec(
        class_type=class_type,
        title=entry.get("display_name") or class_type,
        inputs=_foreign_inputs(entry["input"]),
        outputs=tuple(
            OutputSpec(str(n), _type_name(t)) for n, t in zip(names, entry["output"], strict=False)
        ),
        is_output=bool(entry.get("output_node")),
        description=entry.get("description") or "",
    )


def _foreign_inputs(groups: Mapping[str, Any], prefix: str = "") -> tuple[InputSpec, ...]:
    return tuple(
        _foreign_input(prefix + name, definition, group == "required")
        for group in ("required", "optional")
        for name, definition in (groups.get(group) or {}).items()
    )


def _foreign_input(name: str, definition: Sequence[Any], required: bool) -> InputSpec:
    """Describe `[type or list of options, {settings}]`, the form in which the host sends V1 and V3 nodes."""
    settings: Mapping[str, Any] = definition[1] if len(definition) > 1 else {}
    io_type = settings.get("widgetType") or _type_name(definition[0])
    options = definition[0] if isinstance(definition[0], list) else settings.get("options")
    dynamic = io_type == "COMFY_DYNAMICCOMBO_V3"
    keys = tuple(option["key"] for option in options) if dynamic and options else options
    return InputSpec(
        name=name,
        type=io_type,
        required=required,
        widget=io_type in WIDGET_TYPES and not settings.get("forceInput"),
        default=settings.get("default"),
        min=settings.get("min"),
        max=settings.get("max"),
        options=None if keys is None else tuple(keys),
        multiple=bool(settings.get("multiselect")),
        control=_has_control(name, io_type, settings.get("control_after_generate")),
        branches={o["key"]: _foreign_inputs(o["inputs"], f"{name}.") for o in options or ()}
        if dynamic
        else {},
        tooltip=settings.get("tooltip") or "",
        before=settings.get(SAVED_BEFORE),
    )


def _type_name(value: Any) -> str:
    return "COMBO" if isinstance(value, list) else str(value)
