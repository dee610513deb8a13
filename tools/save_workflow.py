"""Turn an API-format graph into the workflow file that the real front end saves.

A ComfyUI is started with this pack (found as the host tests find it), the graph is loaded in Chromium, its nodes are
put where their ``_meta.position`` says, and what ``app.graph.serialize()`` gives is written. ``_meta`` may
also hold ``size``, ``color``, ``mode`` (4: bypassed) and ``models`` (where the files that it names are found). A
top-level ``"_extra"`` adds ``notes`` and ``groups``, or has ``columns``: each a ``width`` and ``groups`` that stand one
below the other, with a ``title`` and ``items``, which are node ids, pairs of a node id and its height, or notes.
Usage: ``python tools/save_workflow.py API.json OUT.json [SCREENSHOT.png]``.
Needs the packages of requirements-dev.txt and Debian's chromium.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "host"))

from comfyui_process import find_installation, running  # noqa: E402
from playwright.sync_api import Page, sync_playwright  # noqa: E402

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
VIEW = {"scale": 0.7, "offset": [120, 130]}
"""What a file shows first: its upper left, beside the page's own bars."""
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
        if (meta.mode) own.mode = meta.mode;
        if (meta.models) own.properties.models = meta.models;
        own.title = meta.title ?? own.title;
        for (const widget of own.widgets ?? [])  // a shared graph draws the same pictures every time
            if (widget.name === "control_after_generate") widget.value = "fixed";
    }
    const addNote = (note) => {
        const node = LiteGraph.createNode("MarkdownNote");
        app.graph.add(node);
        node.pos = note.position ?? [0, 0];
        node.setSize(note.size ?? [400, 200]);
        node.title = note.title;
        node.color = "#432";
        node.bgcolor = "#653";
        node.widgets[0].value = note.text;
        return node;
    };
    const addGroup = (title, [x, y, width, height], color) => {
        const own = new LiteGraph.LGraphGroup(title);
        own.pos = [x, y];
        own.size = [width, height];
        own.color = color ?? "#3f789e";
        app.graph.add(own);
    };
    for (const note of extra.notes ?? []) addNote(note);
    for (const group of extra.groups ?? []) addGroup(group.title, group.bounding, group.color);
    const titleBar = 30, gap = 20, head = 50, margin = 20;
    let x = 0;
    for (const column of extra.columns ?? []) {
        let y = 0;
        for (const group of column.groups) {
            const top = y;
            y += head;
            for (const item of group.items) {
                const [id, height] = Array.isArray(item) ? item : [item, item.height];
                const node = typeof id === "object" ? addNote(id) : app.graph.getNodeById(Number(id));
                y += titleBar;
                node.pos = [x, y];
                node.setSize([column.width, height ?? node.computeSize()[1]]);
                y += node.size[1] + gap;
            }
            addGroup(group.title, [x - margin, top, column.width + 2 * margin, y - top], group.color);
            y += 2 * margin;
        }
        x += column.width + 4 * margin;
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


@contextmanager
def front_end() -> Iterator[Callable[[], Page]]:
    """What opens the front end of a fresh host as a new user sees it.

    Each graph wants a page of its own: widgets left at their default would get the values that a graph before gave to
    its node of that number.
    """
    installation = find_installation()
    if installation is None:
        raise SystemExit("no ComfyUI found; set COMFYUI_PATH")
    with (
        tempfile.TemporaryDirectory() as base,
        running(installation, Path(base)) as host,
        sync_playwright() as p,
    ):
        browser = p.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)

        def opened() -> Page:
            page = browser.new_context(viewport={"width": 2400, "height": 1350}).new_page()
            page.goto(host.url)
            page.wait_for_function(READY, timeout=60000)
            return page

        yield opened
        browser.close()


def save(page: Page, api: dict[str, Any], out: Path, picture: Path | None = None) -> None:
    """Load `api` in the front end, write the workflow to `out` and a screenshot of it to `picture`."""
    extra = api.pop("_extra", {})
    workflow = page.evaluate(LAY_OUT, [api, extra, out.stem])
    workflow["extra"]["ds"] = VIEW
    out.write_text(json.dumps(workflow, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if picture is not None:
        page.evaluate("wf => app.loadGraphData(wf)", workflow)
        page.wait_for_timeout(1500)
        page.keyboard.press("Escape")  # the template browser opens for new users
        page.wait_for_timeout(1000)
        page.evaluate(FIT)
        page.wait_for_timeout(2000)
        page.screenshot(path=picture)


if __name__ == "__main__":
    paths = [Path(argument) for argument in sys.argv[1:]]
    with front_end() as new_page:
        save(new_page(), json.loads(paths[0].read_text(encoding="utf-8")), *paths[1:])
