"""What a link brings, where that can be known before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def text_behind(prompt: Mapping[str, Any], node: str, name: str) -> str | None:
    """The text that the input `name` of a node of an API prompt gets; None where a node computes it.

    A node whose one input is a text, the host's text widgets for instance, is taken to pass it on.
    """
    value = prompt.get(node, {}).get("inputs", {}).get(name)
    while isinstance(value, list):  # a link: node, output
        inputs = prompt.get(str(value[0]), {}).get("inputs", {})
        if len(inputs) != 1:
            return None
        (value,) = inputs.values()
    return value if isinstance(value, str) else None
