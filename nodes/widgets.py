"""Widgets that are built from the settings that config classes declare, and configs that are built from widgets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

from ..host import io
from ..training.checks import declared

NO_LIMIT = 1_000_000_000
"""Highest value of a widget whose setting has none: without one the front end would take 2048."""

BEFORE = "saved_before"
"""Under this name an input says what a workflow means that was saved before the widget was added, where that is not its
default; our front end and the standalone host heed it."""

C = TypeVar("C")


def same(*names: str) -> dict[str, str]:
    """A table for widgets that are named like their fields."""
    return dict(zip(names, names, strict=True))


def widgets(
    kind: type, names: Mapping[str, str], own: Mapping[str, Mapping[str, Any]] | None = None
) -> list[io.Input]:
    """Build the widgets of the config class `kind`, in the order of `names`.

    Args:
        names: field of the config by the id of its widget.
        own: by the id of a widget, what its node says otherwise than the declaration: arguments of the input's class.
    """
    own = own or {}
    return [widget(kind, field, id, **own.get(id, {})) for id, field in names.items()]


def widget(kind: type, field: str, id: str = "", **own: Any) -> io.Input:
    """Build the widget of one field: a switch, a list of choices or a number, with the help text as its tooltip.

    Args:
        id: the widget's, if not the field's name.
        own: arguments of the input's class that are otherwise here than declared.

    Raises:
        TypeError: a field of another type; its node builds that widget itself.
    """
    said, of_type = declared(kind)[field], get_type_hints(kind)[field]
    given: dict[str, Any] = {"default": getattr(kind, field), "tooltip": said.help}
    if said.choices:
        return io.Combo.Input(id or field, **given | {"options": list(said.choices)} | own)
    if of_type is bool:
        return io.Boolean.Input(id or field, **given | own)
    if of_type not in (int, float):
        raise TypeError(f"{kind.__name__}.{field} must be a choice, a switch or a number, got {of_type}")
    given["min"] = of_type(said.low)
    given["max"] = of_type(NO_LIMIT if math.isinf(said.high) else said.high)
    if said.step is not None:
        given["step"] = of_type(said.step)
    if of_type is int:
        return io.Int.Input(id or field, **given | own)
    if said.round is not None:
        given["round"] = said.round
    return io.Float.Input(id or field, **given | own)


def added(item: io.Input, before: Any) -> io.Input:
    """A widget that was added to its node later: `before` is what a workflow means that was saved without it."""
    item.extra_dict = {BEFORE: before}
    return item


def tooltip(kind: type, field: str) -> str:
    """The help text of a field, for a widget that its node builds itself."""
    return declared(kind)[field].help


def config_of(kind: type[C], names: Mapping[str, str], values: Mapping[str, Any], **more: Any) -> C:
    """Build a config from the values of the widgets that `widgets(kind, names)` made.

    Args:
        more: fields that have no such widget.
    """
    return kind(**{names[id]: value for id, value in values.items()}, **more)
