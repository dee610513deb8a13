"""Graphs in ComfyUI's API format, written down node by node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Link = list[Any]
"""``[node id, output]``."""


@dataclass
class PromptBuilder:
    """A graph that grows; `prompt` is what a host takes."""

    info: Mapping[str, Any] = field(default_factory=dict)
    """The host's `/object_info`: widgets of these nodes that are not given get their defaults."""
    prompt: dict[str, Any] = field(default_factory=dict)

    def add(self, class_type: str, **inputs: Any) -> Link:
        """Add a node and return the link to its first output."""
        node = str(len(self.prompt) + 1)
        self.prompt[node] = {"class_type": class_type, "inputs": self.defaults(class_type) | inputs}
        return [node, 0]

    def defaults(self, class_type: str) -> dict[str, Any]:
        """The default values of a node's required widgets."""
        required = self.info[class_type]["input"]["required"] if class_type in self.info else {}
        settings = {name: definition[1] for name, definition in required.items() if len(definition) > 1}
        return {name: own["default"] for name, own in settings.items() if "default" in own}
