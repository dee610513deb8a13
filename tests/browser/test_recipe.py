"""A recipe in the real front end: unfolded into settings nodes; and workflows saved before there were presets."""

from __future__ import annotations

import json

import pytest
from comfyui_process import ROOT
from test_front import MODES, PREPARE, browser, look_at, shots, visit

__all__ = ["browser", "shots"]  # the fixtures

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


WIRED = """([recipe, family]) => {
    app.graph.clear();
    const make = (type, x, values) => {
        const node = LiteGraph.createNode(type);
        node.pos = [x, 100];
        app.graph.add(node);
        for (const widget of node.widgets ?? []) if (widget.name in values) widget.value = values[widget.name];
        return node;
    };
    const tiny = make("TestFamily", 0, { family });
    const hosted = make("RolloutFromComfyModel", 350, {});
    const recipes = make("RolloutRecipe", 700, { recipe });
    const text = make("PreviewAny", 1150, {});
    text.size = [620, 420];
    tiny.connect(0, hosted, "model");
    hosted.connect(0, recipes, "model");
    recipes.connect(recipes.findOutputSlot("summary"), text, 0);
    return [recipes.id, text.id];
}"""
SHOWN = "id => app.graph.getNodeById(id).widgets.map((widget) => String(widget.value ?? ''))"
SUMMARIES = {
    "SDXL: style": ("sdxl", ["rank 32", "Trained: noise levels", "min-SNR", "1024 x 1024 pixels"]),
    "Flux dev: subject": ("flux_dev", ["rank 16", "set guidance to 1"]),
    "Qwen-Image-Edit: edit": ("qwen_edit", ["learning rate 0.00005", "control_1 of Dataset from Folder"]),
    "Wan 2.2 14B high noise, text: video": (
        "wan21_t2v",
        ["noise levels 0.875 to 1", "clip_frames", "the other of the two models"],
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_a_recipe_says_in_words_what_it_sets(mode, browser, comfyui, shots):
    page = browser.new_context(viewport={"width": 1900, "height": 950}).new_page()
    visit(page, comfyui.url)
    page.evaluate(PREPARE, [mode == "nodes2", "en"])
    visit(page, comfyui.url)
    for number, (recipe, (family, told)) in enumerate(SUMMARIES.items()):
        node, text = page.evaluate(WIRED, [recipe, family])
        page.evaluate("app.queuePrompt(0, 1)")
        begins = [text, recipe.rpartition(":")[0]]
        page.wait_for_function(
            f"([id, first]) => ({SHOWN})(id).some((text) => text.startsWith(first))",
            arg=begins,
            timeout=120_000,
        )
        summary = max(page.evaluate(SHOWN, text), key=len)
        assert [part for part in told if part not in summary] == [], summary
        look_at(page, node, 0.75)
        page.screenshot(path=shots / f"recipe-{mode}-{number}.png")
    page.context.close()
