"""Graphs in ComfyUI's API format, written down node by node."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Link = list[Any]
"""``[node id, output]``."""


@dataclass
class PromptBuilder:
    """A graph that grows; `prompt` is what a host takes."""

    prompt: dict[str, Any] = field(default_factory=dict)

    def add(self, class_type: str, **inputs: Any) -> Link:
        """Add a node and return the link to its first output."""
        node = str(len(self.prompt) + 1)
        self.prompt[node] = {"class_type": class_type, "inputs": inputs}
        return [node, 0]
