"""The blueprint in the real front end: found by its name, wired to loaders, run, and a LoRA file is there."""

from __future__ import annotations

import json

import pytest
from comfyui_process import ROOT
from test_four_nodes import make_pictures
from test_front import MODES, browser, open_page, shots

__all__ = ["browser", "open_page", "shots"]  # fixtures

(BLUEPRINT,) = sorted((ROOT / "subgraphs").glob("*.json"))
EMPTY = {"last_node_id": 0, "last_link_id": 0, "nodes": [], "links": [], "groups": [], "version": 0.4}
PLACED = "() => app.graph.nodes.map((node) => node.title)"
WIRE = """() => {
    const [trainer] = app.graph.nodes;
    const loader = (type, values, input) => {
        const node = LiteGraph.createNode(type);
        app.graph.add(node);
        for (const [name, value] of Object.entries(values))
            node.widgets.find((widget) => widget.name === name).value = value;
        node.connect(0, trainer, trainer.findInputSlot(input));
    };
    loader("TestTinyModel", { family: "flux", dtype: "float32" }, "model");
    loader("TestTinyClip", { family: "flux" }, "clip");
    loader("TestTinyVae", { channels: 16 }, "vae");
    const set = { folder: "four-nodes", steps: 2, save_lora_as: "from-blueprint" };
    for (const [name, value] of Object.entries(set))
        trainer.widgets.find((widget) => widget.name === name).value = value;
}"""


@pytest.mark.parametrize("mode", MODES)
def test_the_blueprint_is_found_by_name_and_trains(mode, open_page, comfyui, shots):
    make_pictures(comfyui)
    page = open_page(mode, workflow=EMPTY)
    page.locator("#graph-canvas").dblclick(position={"x": 700, "y": 600})
    page.wait_for_timeout(500)
    page.keyboard.type(BLUEPRINT.stem, delay=20)
    page.wait_for_timeout(1500)
    page.screenshot(path=shots / f"blueprint-search-{mode}.png")
    page.keyboard.press("Enter")
    page.wait_for_timeout(1000)
    if not page.evaluate(PLACED):  # newer front ends hang it on the pointer
        page.mouse.click(500, 300)
    page.wait_for_function("() => app.graph.nodes.length === 1", timeout=20_000)
    assert page.evaluate(PLACED) == [BLUEPRINT.stem]
    page.evaluate(WIRE)
    page.wait_for_timeout(500)
    page.screenshot(path=shots / f"blueprint-placed-{mode}.png")
    before = {path.name for path in (comfyui.base / "output").rglob("from-blueprint*.safetensors")}
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    outputs = comfyui.queue(prompt)["outputs"]
    assert any("step 2 of 2" in text for node in outputs.values() for text in node.get("text", []))
    assert {path.name for path in (comfyui.base / "output").rglob("from-blueprint*.safetensors")} > before


def test_its_nodes_hold_as_many_values_as_they_have_widgets(comfyui):
    info = comfyui.object_info()
    (graph,) = json.loads(BLUEPRINT.read_text(encoding="utf-8"))["definitions"]["subgraphs"]
    for node in graph["nodes"]:
        widgets = [own["widget"]["name"] for own in node["inputs"] if own.get("widget")]
        known = {**info[node["type"]]["input"]["required"], **info[node["type"]]["input"].get("optional", {})}
        assert set(widgets) <= set(known)
        assert len(widgets) == len(node["widgets_values"])
