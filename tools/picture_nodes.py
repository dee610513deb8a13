"""Make the pictures of the help pages: every node as the real front end draws it, in a shipped workflow.

Workflows that need nothing but the demo model are run first, so that panels and results are real; a node that gives
pictures gets the first of them as a second picture. Nodes that no workflow has are drawn with their defaults.
Usage: ``python tools/picture_nodes.py [NODE ...]`` writes ``web/docs/<node>/{node,result}.png``.
Needs the packages of requirements-dev.txt and Debian's chromium; a few minutes.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "host"))

from comfyui_process import ComfyUI, find_installation, running  # noqa: E402
from playwright.sync_api import Page, sync_playwright  # noqa: E402
from save_workflow import ARGUMENTS, CHROMIUM, READY  # noqa: E402

DOCS = ROOT / "web" / "docs"
RUNNABLE = ("quickstart", "staged-training", "exposure-bias", "sampler-comparison")
WIDTH = 460
"""Of a result in pixels: the help is shown in a sidebar."""
PREPARE = """async () => {
    const set = (name, value) => app.extensionManager.setting.set(name, value);
    await set("Comfy.TutorialCompleted", true);
    await set("Comfy.NodeBadge.NodeSourceBadgeMode", "None");
    await set("Comfy.Minimap.Visible", false);
}"""
SHOW = """(id) => {
    const node = app.graph.getNodeById(id), { ds } = app.canvas;
    app.canvas.deselectAll();
    app.graph.nodes.forEach((other, i) => { other.pos = other === node ? [0, 0] : [1e5 * (i + 1), 1e6]; });
    for (const link of app.graph.links.values()) link.color = "transparent";
    ds.scale = 1;
    ds.offset = [500, 150];
    app.canvas.links_render_mode = LiteGraph.HIDDEN_LINK;
    app.canvas.setDirty(true, true);
    const box = app.canvas.canvas.getBoundingClientRect();
    return [box.left + 500, box.top + 150, node.size[0], node.size[1]];
}"""
ALONE = """(type) => {
    app.graph.clear();
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    return node.id;
}"""


def nodes(page: Page) -> list[tuple[int, str]]:
    """Numbers and types of our nodes in the graph."""
    found: list[list[Any]] = page.evaluate("app.graph.nodes.map((node) => [node.id, node.comfyClass])")
    return [(number, kind) for number, kind in found if str(kind).startswith("Rollout")]


def run(page: Page, host: ComfyUI) -> dict[str, Any]:
    """Execute the graph that is open; its outputs by node."""
    prompt_id = page.evaluate("async () => (await api.queuePrompt(0, await app.graphToPrompt())).prompt_id")
    outputs: dict[str, Any] = host.wait(prompt_id, 900)["outputs"]
    page.wait_for_timeout(2000)
    return outputs


def results(workflow: dict[str, Any], outputs: dict[str, Any]) -> Iterator[tuple[str, dict[str, str]]]:
    """Types of nodes of ours, and the first picture that a node saved of them."""
    types = {node["id"]: node["type"] for node in workflow["nodes"]}
    for _, origin, slot, target, *_ in sorted(workflow["links"], key=lambda link: link[2]):
        pictures = outputs.get(str(target), {}).get("images")
        if slot == 0 and pictures and types[origin].startswith("Rollout"):
            yield types[origin], pictures[0]


def picture(page: Page, number: int) -> Image.Image:
    """The node alone."""
    x, y, width, height = page.evaluate(SHOW, number)
    page.wait_for_timeout(900)
    clip = {"x": x - 14, "y": y - 44, "width": width + 28, "height": height + 60}
    return Image.open(io.BytesIO(page.screenshot(clip=clip)))


def write(image: Image.Image, path: Path) -> None:
    """A small PNG: few colours are enough for a node, and 256 for a result."""
    image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(
        f"{path.relative_to(ROOT)}: {image.width} x {image.height}, {path.stat().st_size // 1024} kB",
        flush=True,
    )


@contextmanager
def front_end(width: int, height: int) -> Iterator[tuple[Page, ComfyUI]]:
    """A page of that size with the front end of a fresh host, settled as for pictures."""
    installation = find_installation()
    if installation is None:
        raise SystemExit("no ComfyUI found; set COMFYUI_PATH")
    with (
        tempfile.TemporaryDirectory() as base,
        running(installation, Path(base), ["--preview-method", "latent2rgb"]) as host,
        sync_playwright() as p,
    ):
        browser = p.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": width, "height": height})
        for _ in range(2):  # settings are read when the page is loaded
            page.goto(host.url)
            page.wait_for_function(READY, timeout=90_000)
            page.wait_for_timeout(2000)
            page.evaluate(PREPARE)
        page.keyboard.press("Escape")
        page.evaluate("async () => { window.api = (await import('/scripts/api.js')).api; }")
        yield page, host
        browser.close()


def main(only: list[str]) -> None:
    """Draw the nodes named, or all."""
    wanted = set(only) or {path.name for path in DOCS.iterdir() if path.is_dir()}
    with front_end(1700, 1400) as (page, host):
        files = (ROOT / "workflows").glob("*.json")
        for file in sorted(files, key=lambda f: (f.stem not in RUNNABLE, f.stem != "quickstart")):
            workflow = json.loads(file.read_text(encoding="utf-8"))
            if not wanted & {node["type"] for node in workflow["nodes"]}:
                continue
            page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
            page.wait_for_timeout(1500)
            outputs = run(page, host) if file.stem in RUNNABLE else {}
            for kind, saved in results(workflow, outputs):
                shown = "result.png" in (DOCS / kind / "en.md").read_text(encoding="utf-8")
                known = file.stem != "quickstart" and (DOCS / kind / "result.png").exists()
                if kind in wanted and shown and not known:
                    image = Image.open(io.BytesIO(host.view(saved)))
                    image.thumbnail((WIDTH, 2 * WIDTH), Image.Resampling.LANCZOS)
                    write(image, DOCS / kind / "result.png")
            for number, kind in nodes(page):
                if kind in wanted:
                    wanted.discard(kind)
                    write(picture(page, number), DOCS / kind / "node.png")
        for kind in sorted(wanted):
            number = page.evaluate(ALONE, kind)
            page.wait_for_timeout(800)
            write(picture(page, number), DOCS / kind / "node.png")


if __name__ == "__main__":
    main(sys.argv[1:])
