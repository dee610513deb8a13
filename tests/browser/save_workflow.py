"""Turn an API-format graph into the workflow file that the real front end saves.

A ComfyUI is started with this pack (found as the host tests find it), the graph is loaded in Chromium, its nodes are
put where their ``_meta.position`` says, and what ``app.graph.serialize()`` gives is written. ``_meta`` may
also hold ``size`` and ``color``; a top-level ``"_extra": {"groups": [...]}`` adds titled groups.
Usage: ``python tests/browser/save_workflow.py API.json OUT.json [SCREENSHOT.png]``.
Needs the packages of requirements-dev.txt and Debian's chromium.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "host"))

from comfyui_process import find_installation, running  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
READY = "() => window.app && app.graph && Object.keys(LiteGraph.registered_node_types).length > 50"
LAY_OUT = """async ([prompt, extra, name]) => {
    await app.loadApiJson(prompt, name);
    await new Promise((resolve) => setTimeout(resolve, 1000));
    for (const [id, node] of Object.entries(prompt)) {
        const own = app.graph.getNodeById(Number(id)) ?? app.graph.getNodeById(id);
        const meta = node._meta ?? {};
        if (meta.position) own.pos = meta.position;
        if (meta.size) own.setSize(meta.size);
        if (meta.color) { own.color = meta.color[0]; own.bgcolor = meta.color[1]; }
        own.title = meta.title ?? own.title;
        for (const widget of own.widgets ?? [])  // a shared graph draws the same pictures every time
            if (widget.name === "control_after_generate") widget.value = "fixed";
    }
    for (const note of extra.notes ?? []) {
        const node = LiteGraph.createNode("MarkdownNote");
        app.graph.add(node);
        node.pos = note.position;
        node.setSize(note.size);
        node.title = note.title;
        node.widgets[0].value = note.text;
    }
    for (const group of extra.groups ?? []) {
        const own = new LiteGraph.LGraphGroup(group.title);
        own.pos = [group.bounding[0], group.bounding[1]];
        own.size = [group.bounding[2], group.bounding[3]];
        if (group.color) own.color = group.color;
        app.graph.add(own);
    }
    // As a file has it: undefined is left out. Handed over as it is, it would come out as null.
    return JSON.parse(JSON.stringify(app.graph.serialize()));
}"""

FIT = """() => {
    const boxes = app.graph.nodes.map((node) => node.boundingRect ?? node.getBounding());
    const left = Math.min(...boxes.map((b) => b[0])), top = Math.min(...boxes.map((b) => b[1]));
    const right = Math.max(...boxes.map((b) => b[0] + b[2])), bottom = Math.max(...boxes.map((b) => b[1] + b[3]));
    const { ds, canvas } = app.canvas;
    ds.scale = Math.min((canvas.clientWidth - 120) / (right - left), (canvas.clientHeight - 90) / (bottom - top));
    ds.offset = [70 / ds.scale - left, 50 / ds.scale - top];
    app.canvas.setDirty(true, true);
}"""


def save(api: dict[str, Any], out: Path, picture: Path | None = None) -> None:
    """Load `api` in the front end, write the workflow to `out` and a screenshot of it to `picture`."""
    extra = api.pop("_extra", {})
    installation = find_installation()
    if installation is None:
        raise SystemExit("no ComfyUI found; set COMFYUI_PATH")
    with (
        tempfile.TemporaryDirectory() as base,
        running(installation, Path(base)) as host,
        sync_playwright() as p,
    ):
        browser = p.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 2400, "height": 1350})
        page.goto(host.url)
        page.wait_for_function(READY, timeout=60000)
        workflow = page.evaluate(LAY_OUT, [api, extra, out.stem])
        out.write_text(json.dumps(workflow, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if picture is not None:
            page.evaluate("wf => app.loadGraphData(wf)", workflow)
            page.wait_for_timeout(1500)
            page.keyboard.press("Escape")  # the template browser opens for new users
            page.wait_for_timeout(1000)
            page.evaluate(FIT)
            page.wait_for_timeout(2000)
            page.screenshot(path=picture)
        browser.close()


if __name__ == "__main__":
    paths = [Path(argument) for argument in sys.argv[1:]]
    save(json.loads(paths[0].read_text(encoding="utf-8")), *paths[1:])
