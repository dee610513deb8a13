"""Make the README's pictures of the front end: ``docs/{graph,panel,runs}.png``, of the quick start, trained.

Usage: ``python tools/picture_docs.py``; about five minutes. Needs the packages of requirements-dev.txt and Debian's
chromium.
"""

from __future__ import annotations

import io
import json

from picture_nodes import ROOT, front_end, run, write
from PIL import Image
from playwright.sync_api import Page

DOCS = ROOT / "docs"
TRAIN = "RolloutTrainLoRA"
TAB, TAB_BUTTON = ".rollout-runs", ".side-bar-button:has(.pi-chart-line)"
WIDTH = 1680
"""Of the picture of the whole graph in pixels."""
FIT = """([width, height]) => {
    const { ds } = app.canvas;
    const sides = app.graph.nodes.map(({ pos, size }) => [...pos, pos[0] + size[0], pos[1] + size[1]]);
    const at = (i, of) => of(...sides.map((side) => side[i]));
    const [left, top, right, bottom] = [at(0, Math.min), at(1, Math.min) - 100, at(2, Math.max), at(3, Math.max)];
    ds.scale = Math.min(width / (right - left + 80), height / (bottom - top + 80));
    const [x, y] = [90, 100];  // beside and below the front end's own bars
    ds.offset = [x / ds.scale + 40 - left, y / ds.scale + 40 - top];
    app.canvas.setDirty(true, true);
    const box = app.canvas.canvas.getBoundingClientRect();
    return [box.left + x, box.top + y, (right - left + 80) * ds.scale, (bottom - top + 80) * ds.scale];
}"""
LOOK_AT = """(type) => {
    const node = app.graph.nodes.find((one) => one.type === type);
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [200 - node.pos[0], 150 - node.pos[1]];
    app.canvas.setDirty(true, true);
}"""


def part(page: Page, x: float, y: float, width: float, height: float) -> Image.Image:
    """What the page shows there."""
    return Image.open(io.BytesIO(page.screenshot(clip={"x": x, "y": y, "width": width, "height": height})))


def main() -> None:
    """Train the quick start in the browser and picture it."""
    workflow = json.loads((ROOT / "workflows" / "quickstart.json").read_text(encoding="utf-8"))
    with front_end(2600, 2100) as (page, host):
        page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
        page.wait_for_timeout(2000)
        run(page, host)
        box = page.evaluate(FIT, [2480, 1960])
        page.wait_for_timeout(3000)
        graph = part(page, *box)
        graph.thumbnail((WIDTH, WIDTH), Image.Resampling.LANCZOS)
        write(graph, DOCS / "graph.png")
        page.evaluate(LOOK_AT, TRAIN)
        page.wait_for_timeout(1500)
        panel = page.locator(".rollout-trainer-panel").bounding_box()
        assert panel is not None
        write(
            part(page, panel["x"] - 6, panel["y"] - 4, panel["width"] + 12, panel["height"] + 8),
            DOCS / "panel.png",
        )
        page.set_viewport_size({"width": 1500, "height": 912})
        page.locator(TAB_BUTTON).click()
        page.locator(f"{TAB} li").first.click()
        page.wait_for_selector(f"{TAB} path")
        page.wait_for_timeout(1500)
        side = page.locator(TAB).bounding_box()
        assert side is not None
        write(part(page, 0, 0, side["x"] + side["width"], 912), DOCS / "runs.png")


if __name__ == "__main__":
    main()
