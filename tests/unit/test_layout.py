"""Where `tools/layout.py` puts the nodes of templates."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from layout import GAP, READABLE, SCREEN, TITLE, Column, Group, placed, view

COLUMNS = [Column(300, [Group("a", [1, 2]), Group("b", [3])]), Column(200, [Group("c", [4])])]
HEIGHTS = {1: 100.0, 2: 250.0, 3: 40.0, 4: 900.0}
WIDTHS = {1: 300, 2: 300, 3: 300, 4: 200}


def test_every_node_stands_clear_of_the_others_and_inside_its_group():
    layout = placed(COLUMNS, HEIGHTS)
    assert set(layout.nodes) == set(HEIGHTS)
    boxes = {n: (x, y - TITLE, x + WIDTHS[n], y + HEIGHTS[n]) for n, (x, y) in layout.nodes.items()}
    for i, (ax, ay, ar, ab) in boxes.items():
        for j, (bx, by, br, bb) in boxes.items():
            assert i == j or ax >= br or bx >= ar or ay >= bb + GAP or by >= ab + GAP
    members = {"a": (1, 2), "b": (3,), "c": (4,)}
    for group in layout.groups:
        x, y, w, h = group["bounding"]
        for n in members[group["title"]]:
            left, top, right, bottom = boxes[n]
            assert x < left
            assert y < top
            assert right < x + w
            assert bottom < y + h
    edges = [(g["bounding"][0], g["bounding"][0] + g["bounding"][2]) for g in layout.groups]
    assert edges[0][1] < edges[2][0]
    assert layout.size == (
        edges[2][1] - edges[0][0],
        max(g["bounding"][1] + g["bounding"][3] for g in layout.groups),
    )


def test_a_small_workflow_opens_whole_and_a_large_one_readable():
    assert view((900, 600))["scale"] == 1.0
    assert view((9000, 600))["scale"] == READABLE
    middle = view((2200, 1000))
    assert READABLE < middle["scale"] < 1
    assert (2200 * middle["scale"]) < SCREEN[0]
