"""Turn an API-format graph into the workflow file that the real front end saves, and lay workflows out.

A ComfyUI is started with this pack (found as the host tests find it), the graph is loaded in Chromium, and what
``app.graph.serialize()`` gives is written, its nodes where `layout` puts them: their heights are measured in both
canvases. ``_meta`` may hold ``title``, ``color``, ``mode`` (4: bypassed) and ``models`` (where the files that it names
are found). A top-level ``"_extra"`` has ``columns``: each a ``width`` and ``groups`` that stand one below the other,
with a ``title`` and ``items``, which are node ids, pairs of a node id and the least height it is given, or notes; and
``app``, for one that opens in app mode: ``inputs`` are pairs of a node id and a widget, ``outputs`` node ids.
Usage: ``python tools/save_workflow.py API.json OUT.json [SCREENSHOT.png]``.
Needs the packages of requirements-dev.txt and Debian's chromium.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "host"))

from comfyui_process import find_installation, running  # noqa: E402
from layout import FILM, TITLE, Column, Group, placed, view  # noqa: E402
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
OPENING = "rollout_trainer_opens"
FILMED = ("RolloutTrainLoRA", "RolloutTrainSteps")
"""Nodes whose panel grows while they train."""
"""In a workflow's `extra`: it opens as its `ds` says (`web/opening.js`), where the front end would show all of it."""
READY = "() => window.app && app.graph && Object.keys(LiteGraph.registered_node_types).length > 50"
BUILD = """async ([prompt, notes, sizes, name]) => {
    if (prompt) {
        await app.loadApiJson(prompt, name);
        await new Promise((resolve) => setTimeout(resolve, 1000));
    }
    for (const [id, node] of Object.entries(prompt ?? {})) {
        const own = app.graph.getNodeById(Number(id)) ?? app.graph.getNodeById(id);
        const meta = node._meta ?? {};
        if (meta.color) { own.color = meta.color[0]; own.bgcolor = meta.color[1]; }
        if (meta.mode) own.mode = meta.mode;
        if (meta.models) own.properties.models = meta.models;
        own.title = meta.title ?? own.title;
        for (const widget of own.widgets ?? [])  // a shared graph draws the same pictures every time
            if (widget.name === "control_after_generate") widget.value = "fixed";
    }
    for (const [id, note] of Object.entries(notes)) {
        const node = LiteGraph.createNode("MarkdownNote");
        node.id = Number(id);
        app.graph.add(node);
        node.title = note.title;
        node.color = "#432";
        node.bgcolor = "#653";
        node.widgets[0].value = note.text;
    }
    for (const [id, [width, height]] of Object.entries(sizes)) {
        const node = app.graph.getNodeById(Number(id));
        node.setSize([width, Math.max(height, node.computeSize()[1])]);
    }
    // As a file has it: undefined is left out. Handed over as it is, it would come out as null.
    return JSON.parse(JSON.stringify(app.graph.serialize()));
}"""
DRAWN = """() => Object.fromEntries([...document.querySelectorAll("[data-node-id]")].map((node) =>
    [node.dataset.nodeId, node.getBoundingClientRect().height / app.canvas.ds.scale]))"""
"""Heights of the nodes in Nodes 2.0 with their titles, by number."""
FIT = """() => {
    const boxes = app.graph.nodes.map((node) => node.boundingRect ?? node.getBounding());
    const left = Math.min(...boxes.map((b) => b[0])), top = Math.min(...boxes.map((b) => b[1]));
    const right = Math.max(...boxes.map((b) => b[0] + b[2])), bottom = Math.max(...boxes.map((b) => b[1] + b[3]));
    const { ds, canvas } = app.canvas;
    ds.scale = Math.min((canvas.clientWidth - 120) / (right - left), (canvas.clientHeight - 90) / (bottom - top));
    ds.offset = [70 / ds.scale - left, 50 / ds.scale - top];
    app.canvas.setDirty(true, true);
}"""


class NewPage(Protocol):
    """What opens the front end."""

    def __call__(self, vue: bool = False) -> Page:
        """Open it as a new user sees it; `vue`: in Nodes 2.0."""


@contextmanager
def front_end() -> Iterator[NewPage]:
    """What opens the front end of a fresh host.

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

        def opened(vue: bool = False) -> Page:
            host.post_json("/settings/Comfy.VueNodes.Enabled", vue)  # chosen when the page is loaded
            page = browser.new_context(viewport={"width": 2400, "height": 1350}).new_page()
            page.goto(host.url)
            page.wait_for_function(READY, timeout=300000)
            page.wait_for_timeout(2000)  # a graph of the front end's own comes first
            return page

        yield opened
        browser.close()


def save(new_page: NewPage, api: dict[str, Any], out: Path, picture: Path | None = None) -> None:
    """Load `api` in the front end, write the workflow to `out` and a screenshot of it to `picture`."""
    extra = api.pop("_extra")
    columns = extra["columns"]
    items = [item for column in columns for group in column["groups"] for item in group["items"]]
    last = max(map(int, api))
    notes = {last + 1 + i: note for i, note in enumerate(item for item in items if isinstance(item, dict))}
    page = new_page()
    workflow = page.evaluate(BUILD, [api, notes, sizes(columns, notes), out.stem])
    # Once more as a file: its nodes are as high as the widgets that were changed make them.
    page.evaluate("wf => app.loadGraphData(wf)", workflow)
    page.wait_for_timeout(1000)
    workflow = page.evaluate(BUILD, [None, {}, sizes(columns, notes), out.stem])
    if "app" in extra:
        workflow["extra"] |= {"linearMode": True, "linearData": extra["app"]}
    write(new_page, workflow, columns, notes, out)
    if picture is not None:
        page.evaluate("wf => app.loadGraphData(wf)", json.loads(out.read_text(encoding="utf-8")))
        page.wait_for_timeout(1500)
        page.keyboard.press("Escape")  # the template browser opens for new users
        page.wait_for_timeout(1000)
        page.evaluate(FIT)
        page.wait_for_timeout(2000)
        page.screenshot(path=picture)
    page.context.close()  # an open one goes on drawing


def lay_out_again(new_page: NewPage, columns: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Put the nodes of a workflow file to other places; nothing else of it changes."""
    page = new_page()
    page.evaluate("wf => app.loadGraphData(wf)", json.loads(out.read_text(encoding="utf-8")))
    page.wait_for_timeout(1000)
    workflow = page.evaluate(BUILD, [None, {}, sizes(columns, {}), out.stem])
    page.context.close()
    write(new_page, workflow, columns, {}, out)


def number(item: Any, notes: Mapping[int, Any]) -> int:
    """The number of the node that an item of a group stands for."""
    if isinstance(item, dict):
        return next(id for id, note in notes.items() if note is item)
    return int(item[0] if isinstance(item, list) else item)


def sizes(columns: Sequence[Mapping[str, Any]], notes: Mapping[int, Any]) -> dict[int, list[float]]:
    """Width and least height of each node."""

    def least(item: Any) -> float:
        if isinstance(item, dict):
            return float(item["height"])
        return float(item[1]) if isinstance(item, list) else 0.0

    return {
        number(item, notes): [column["width"], least(item)]
        for column in columns
        for group in column["groups"]
        for item in group["items"]
    }


def write(
    new_page: NewPage,
    workflow: dict[str, Any],
    columns: Sequence[Mapping[str, Any]],
    notes: Mapping[int, Any],
    out: Path,
) -> None:
    """Lay a workflow out by what both canvases draw, and write it."""
    page = new_page(vue=True)
    page.evaluate("wf => app.loadGraphData(wf)", workflow)
    page.wait_for_timeout(3000)
    drawn = page.evaluate(DRAWN)
    heights = {
        node["id"]: math.ceil(max(node["size"][1], drawn[str(node["id"])] - TITLE - 0.01))
        + (FILM if node["type"] in FILMED else 0)
        for node in workflow["nodes"]
    }
    layout = placed(
        [
            Column(
                own["width"],
                [Group(g["title"], [number(item, notes) for item in g["items"]]) for g in own["groups"]],
            )
            for own in columns
        ],
        heights,
    )
    for node in workflow["nodes"]:
        node["pos"] = list(layout.nodes[node["id"]])
    workflow["groups"] = layout.groups
    workflow["extra"] |= {"ds": view(layout.size), OPENING: True}
    out.write_text(json.dumps(workflow, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    page.context.close()
    print(f"{out.name}: {layout.size[0]:.0f} x {layout.size[1]:.0f}, opens at {view(layout.size)['scale']}")


if __name__ == "__main__":
    paths = [Path(argument) for argument in sys.argv[1:]]
    with front_end() as new_page:
        save(new_page, json.loads(paths[0].read_text(encoding="utf-8")), *paths[1:])
