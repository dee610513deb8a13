"""Run a shipped workflow in the front end and take its picture: ``python tests/browser/run_workflow.py NAME OUT.png``.

With small model files under the names that it gives (`shipped`), few steps and small pictures; its training runs
``--steps``. ``--demo`` puts the demo model in place of SD3.5, as a checkpoint with its own text encoders. OUT.right.png
is the graph without its first columns, OUT.picture.png what the last Save Image node has made; ``--thumbnail`` makes
the template's thumbnail of one of the two.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "host")]

import conftest  # noqa: E402, F401  (registers the checkout as rollout_trainer)
from comfyui_process import NODES_FOR_TESTS, ComfyUI, find_installation, running  # noqa: E402
from PIL import Image  # noqa: E402
from playwright.sync_api import Page, sync_playwright  # noqa: E402
from save_workflow import ARGUMENTS, CHROMIUM, READY  # noqa: E402
from shipped import SIDE, WORKFLOWS, make_files, model_files, prompt_of  # noqa: E402

CARD = (640, 400)
PREPARE = """async () => {
    const set = (name, value) => app.extensionManager.setting.set(name, value);
    await set("Comfy.TutorialCompleted", true);
    await set("Comfy.NodeBadge.NodeSourceBadgeMode", "None");
    await set("Comfy.Minimap.Visible", false);
}"""
SET = """(changes) => {
    for (const node of app.graph.nodes)
        for (const widget of node.widgets ?? [])
            if (changes[node.type]?.[widget.name] !== undefined) widget.value = changes[node.type][widget.name];
}"""
DEMO_CLIP = """async () => {
    const clip = LiteGraph.createNode("TestDemoClip");
    app.graph.add(clip);
    clip.pos = [0, -200];
    const checkpoint = app.graph.nodes.find((node) => node.type === "CheckpointLoaderSimple");
    for (const id of [...checkpoint.outputs[1].links]) {
        const link = app.graph.links[id] ?? app.graph.links.get(id);
        clip.connect(0, app.graph.getNodeById(link.target_id), link.target_slot);
    }
    clip.pos = [-2000, 0];
}"""
SHOW = """(first) => {
    const groups = app.graph.groups.filter((group) => group.pos[0] >= first);
    const left = Math.min(...groups.map((g) => g.pos[0])), top = Math.min(...groups.map((g) => g.pos[1]));
    const right = Math.max(...groups.map((g) => g.pos[0] + g.size[0]));
    const bottom = Math.max(...groups.map((g) => g.pos[1] + g.size[1]));
    const { ds, canvas } = app.canvas;
    const [x, y] = [80, 110];  // beside what the page puts over the canvas
    const [width, height] = [canvas.clientWidth - x - 20, canvas.clientHeight - y - 70];
    ds.scale = Math.min(width / (right - left), height / (bottom - top));
    ds.offset = [x / ds.scale - left, y / ds.scale - top];
    app.canvas.setDirty(true, true);
    const box = canvas.getBoundingClientRect();
    return { x: box.x + x, y: box.y + y, width: (right - left) * ds.scale, height: (bottom - top) * ds.scale };
}"""
SMALL = {
    "RolloutOptimizerSettings": {"learning_rate": 5e-3},
    "RolloutTrainLoRA": {"batch_size": 4},
    "RolloutEncodeDataset": {"resolution": SIDE},
    "EmptyLatentImage": {"width": SIDE, "height": SIDE},
    "EmptySD3LatentImage": {"width": SIDE, "height": SIDE},
    "EmptyHunyuanLatentVideo": {"width": SIDE, "height": SIDE},
}
DEMO = {
    "RolloutEncodeDataset": {"resolution": 128},
    "EmptySD3LatentImage": {"width": 128, "height": 128, "batch_size": 4},
    "ModelSamplingSD3": {"shift": 1.0},
    "RolloutLoRASettings": {"rank": 8, "alpha": 8.0},
    "RolloutOptimizerSettings": {"learning_rate": 2e-3, "weight_decay": 0.0},
    "RolloutTrainLoRA": {"batch_size": 8, "autocast": "off", "gradient_checkpointing": False},
    "SamplerCustom": {"cfg": 2.0},
    "RolloutPreview": {"samples": 1},
}


def run(host: ComfyUI, page: Page, name: str, steps: int, demo: bool, prompt: str) -> dict[str, Any]:
    """Open the workflow, set its widgets, run it, and return its history entry."""
    workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
    page.wait_for_timeout(1500)
    page.keyboard.press("Escape")
    changes: dict[str, Any] = {"RolloutTrainLoRA": {"steps": steps}} if steps else {}
    if any(node["type"] == "RolloutFromComfyModel" for node in workflow["nodes"]):
        for kind, values in (DEMO if demo else SMALL).items():
            changes[kind] = changes.get(kind, {}) | values
    page.evaluate(SET, changes)
    if prompt:
        page.evaluate(
            "text => { app.graph.nodes.find((n) => n.title === 'Prompt').widgets[0].value = text; }", prompt
        )
    if demo:
        page.evaluate(DEMO_CLIP)
        page.wait_for_timeout(300)
    before = set(host.get_json("/history"))
    page.evaluate("app.queuePrompt(0, 1)")
    while not (done := set(host.get_json("/history")) - before):
        page.wait_for_timeout(500)
    entry: dict[str, Any] = host.get_json("/history")[done.pop()]
    if entry["status"]["status_str"] != "success":
        raise SystemExit(json.dumps(entry["status"], indent=1)[-3000:])
    page.wait_for_timeout(1500)
    return entry


def thumbnail(source: Path, out: Path, graph: bool) -> None:
    """Write a picture as a card of the template browser; of a graph, rollouts and training, its upper left part."""
    picture = Image.open(source).convert("RGB")
    if graph:
        picture = picture.crop((0, 0, round(0.53 * picture.width), round(0.65 * picture.height)))
    scale = min(CARD[0] / picture.width, CARD[1] / picture.height)
    size = round(scale * picture.width), round(scale * picture.height)
    card = Image.new("RGB", CARD, "#18191b" if graph else "white")
    place = (CARD[0] - size[0]) // 2, (CARD[1] - size[1]) // 2
    card.paste(picture.resize(size, Image.Resampling.LANCZOS), place)
    card.save(out, quality=90)


def photograph(page: Page, out: Path, first: float = -1e9) -> None:
    """Take a picture of the groups whose left edge is at `first` or right of it."""
    clip = page.evaluate(SHOW, first)
    page.wait_for_timeout(2500)
    page.screenshot(path=out, clip=clip)


def main() -> None:
    """Run one workflow."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("name")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--demo", action="store_true")
    parser.add_argument("--prompt", default="")
    parser.add_argument(
        "--right-of", type=float, default=900.0, metavar="X", help="a second picture, from here on"
    )
    parser.add_argument("--thumbnail", choices=["graph", "picture"])
    options = parser.parse_args()
    installation = find_installation()
    if installation is None:
        raise SystemExit("no ComfyUI found; set COMFYUI_PATH")
    with (
        tempfile.TemporaryDirectory() as base,
        running(installation, Path(base), others=[NODES_FOR_TESTS]) as host,
        sync_playwright() as p,
    ):
        prepare(host, options.name, options.demo)
        browser = p.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 2400, "height": 1350}, device_scale_factor=1)
        for _ in range(2):  # settings are read when the page is loaded
            page.goto(host.url)
            page.wait_for_function(READY, timeout=60000)
            page.wait_for_timeout(1500)
            page.evaluate(PREPARE)
        entry = run(host, page, options.name, options.steps, options.demo, options.prompt)
        photograph(page, options.out)
        photograph(page, options.out.with_suffix(".right.png"), options.right_of)
        pictures = [output["images"][0] for output in entry["outputs"].values() if output.get("images")]
        saved = [picture for picture in pictures if picture["type"] == "output"]
        options.out.with_suffix(".picture.png").write_bytes(host.view(saved[-1]))
        browser.close()
    if options.thumbnail:
        source = options.out.with_suffix(".right.png" if options.thumbnail == "graph" else ".picture.png")
        thumbnail(source, WORKFLOWS / f"{options.name}.jpg", options.thumbnail == "graph")


def prepare(host: ComfyUI, name: str, demo: bool) -> None:
    """Write the model files that a workflow names."""
    names = model_files(prompt_of(host, name))
    if not demo:
        make_files(host, names)
        return
    (file,) = names
    node = {"kind": "demo", "folder": "checkpoints", "name": file}
    host.queue({"1": {"class_type": "TestSaveModelFile", "inputs": node}})


if __name__ == "__main__":
    main()
