"""Where the nodes of a workflow stand: in columns of groups, with room for either canvas.

Nodes 2.0 draws the same node higher than the classic canvas. A node keeps the height that the classic canvas needs, and
what is below it stands clear of the higher of the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TITLE = 30
"""Of a node, above its position; all lengths in pixels at scale 1."""
GAP = 20
"""Between nodes; the footer of Nodes 2.0 that tells of an error needs nearly all of it."""
HEAD = 50
"""Of a group, above its first node's title."""
MARGIN = 20
"""Between nodes and the border of their group, and between the borders of two groups."""
FILM = 240
"""What films add to the panel of a training node."""
COLOUR = "#3f789e"

SCREEN = (1920, 1080)
LEFT, TOP = 72, 134
"""What the front end's own bars take of the screen."""
READABLE = 0.65
"""Smallest scale at which a workflow opens: below 0.57 the front end draws no text."""


@dataclass(frozen=True)
class Group:
    """Nodes one below the other, by their numbers."""

    title: str
    nodes: Sequence[int]


@dataclass(frozen=True)
class Column:
    """Groups one below the other."""

    width: float
    groups: Sequence[Group]


@dataclass(frozen=True)
class Layout:
    """What `placed` answers."""

    nodes: Mapping[int, tuple[float, float]]
    """Upper left corner below the title, by number."""
    groups: Sequence[Mapping[str, Any]]
    """As a workflow file has them."""
    size: tuple[float, float]
    """Of the whole; its upper left is at (-MARGIN, 0)."""


def placed(columns: Sequence[Column], heights: Mapping[int, float]) -> Layout:
    """Put every node to its place.

    Args:
        heights: of each node without its title, by number: the most that any canvas draws.
    """
    nodes: dict[int, tuple[float, float]] = {}
    groups: list[dict[str, Any]] = []
    x, bottom = 0.0, 0.0
    for column in columns:
        y = 0.0
        for group in column.groups:
            top, y = y, y + HEAD
            for number in group.nodes:
                y += TITLE
                nodes[number] = (x, y)
                y += heights[number] + GAP
            groups.append(
                {
                    "id": len(groups) + 1,
                    "title": group.title,
                    "bounding": [x - MARGIN, top, column.width + 2 * MARGIN, y - top],
                    "color": COLOUR,
                    "flags": {},
                }
            )
            y += MARGIN
        bottom = max(bottom, y - MARGIN)
        x += column.width + 3 * MARGIN
    return Layout(nodes, groups, (x - MARGIN, bottom))


def view(size: tuple[float, float]) -> dict[str, Any]:
    """How a workflow opens: all of it if it is readable then, else its upper left."""
    fitting = min((SCREEN[0] - LEFT - MARGIN) / size[0], (SCREEN[1] - TOP - MARGIN) / size[1])
    scale = round(min(1.0, max(READABLE, fitting)), 3)
    return {"scale": scale, "offset": [round(LEFT / scale) + MARGIN, round((TOP - 38) / scale)]}
