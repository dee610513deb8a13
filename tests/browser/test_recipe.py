"""A recipe in the real front end: unfolded into settings nodes; and workflows saved before there were presets."""

from __future__ import annotations

import json

import pytest
from comfyui_process import ROOT
from test_front import MODES, PREPARE, browser, visit

__all__ = ["browser"]  # the fixture

UNFOLD = """async (recipe) => {
    const make = (type) => { const node = LiteGraph.createNode(type); app.graph.add(node); return node; };
    const [recipes, training] = [make("RolloutRecipe"), make("RolloutInitTraining")];
    recipes.widgets.find((widget) => widget.name === "recipe").value = recipe;
    ["lora", "optimizer", "timesteps", "loss"].forEach((name, slot) => recipes.connect(slot, training, name));
    const { nodes } = app.graph.serialize();
    const saved = JSON.stringify(nodes.find((node) => String(node.id) === String(recipes.id)).widgets_values);
    await new Promise((resolve) => setTimeout(resolve, 300));
    recipes.widgets.find((widget) => widget.type === "button").callback();
    await new Promise((resolve) => setTimeout(resolve, 300));
    const origin = (name) => {
        const link = training.getInputLink(training.findInputSlot(name));
        const node = app.graph.getNodeById(link.origin_id);
        const widgets = node.widgets.filter((widget) => widget.serialize !== false);
        return [node.type, Object.fromEntries(widgets.map((widget) => [widget.name, widget.value]))];
    };
    const names = ["lora", "optimizer", "timesteps", "loss"];
    return { saved, wired: Object.fromEntries(names.map((name) => [name, origin(name)])) };
}"""
PRESETS = """() => app.graph.nodes.filter((node) => node.type === "RolloutLoRASettings")
    .map((node) => node.widgets.find((widget) => widget.name === "preset").value)"""
NEW = """() => {
    const node = LiteGraph.createNode("RolloutLoRASettings");
    app.graph.add(node);
    return node.widgets.find((widget) => widget.name === "preset").value;
}"""
EXPECTED = {
    "SDXL: style": {"rank": 32, "min_snr_gamma": 5, "distribution": "uniform"},
    "Qwen-Image-Edit: edit": {"rank": 16, "learning_rate": 5e-5, "mean": 0.8, "distribution": "sigmoid"},
    "Wan 2.2 14B high noise, text: video": {"rank": 32, "sigma_low": 0.875, "sigma_high": 0},
    "Flux dev: subject": {"rank": 16, "distribution": "logit_normal", "preset": "attention+mlp"},
}


@pytest.mark.parametrize("mode", MODES)
def test_a_recipe_unfolds_and_an_old_workflow_keeps_its_layers(mode, browser, comfyui):
    page = browser.new_context(viewport={"width": 1500, "height": 950}).new_page()
    visit(page, comfyui.url)
    page.evaluate(PREPARE, [mode == "nodes2", "en"])
    visit(page, comfyui.url)
    for recipe, expected in EXPECTED.items():
        found = page.evaluate(UNFOLD, recipe)
        assert json.loads(found["saved"]) == [recipe]  # the button is not stored
        kinds = [kind for kind, _ in found["wired"].values()]
        assert kinds == [
            "RolloutLoRASettings",
            "RolloutOptimizerSettings",
            "RolloutTimestepSettings",
            "RolloutLossSettings",
        ]
        values = {name: value for _, widgets in found["wired"].values() for name, value in widgets.items()}
        assert {name: values[name] for name in expected} == pytest.approx(expected)
    old = json.loads((ROOT / "tests" / "unit" / "graphs" / "before_presets.json").read_text(encoding="utf-8"))
    page.evaluate("workflow => app.loadGraphData(workflow)", old)
    page.wait_for_timeout(1000)
    assert page.evaluate(PRESETS) == ["attention"]
    assert page.evaluate(NEW) == "attention+mlp"
    page.context.close()
