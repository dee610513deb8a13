"""Recipes: a line for each family that people train, values that the settings nodes can have, and plain refusals."""

import pytest
import torch
from make_web_facts import unfolded

from rollout_trainer.nodes.settings import (
    RolloutLoRASettings,
    RolloutLossSettings,
    RolloutOptimizerSettings,
    RolloutTimestepSettings,
)
from rollout_trainer.samplers import FlowSchedule, TableSchedule
from rollout_trainer.training.objective.timesteps import draw_u, u_range
from rollout_trainer.training.trainer.recipes import RECIPES, recipe_for

FAMILIES = (
    "SDXL", "SD3.5", "Flux dev", "Flux.2 dev", "Flux.2 Klein", "Chroma", "Qwen-Image", "Qwen-Image-Edit", "Z-Image",
    "Z-Image Turbo", "Lumina 2", "HiDream", "Krea 2", "Wan 2.1", "Wan 2.2 5B", "HunyuanVideo 1.5", "LTX-2", "Anima",
)  # fmt: skip
NODES = {
    "RolloutLoRASettings": (RolloutLoRASettings, "lora"),
    "RolloutOptimizerSettings": (RolloutOptimizerSettings, "optimizer"),
    "RolloutTimestepSettings": (RolloutTimestepSettings, "timesteps"),
    "RolloutLossSettings": (RolloutLossSettings, "loss"),
}


def test_every_family_that_people_train_has_one():
    have = {recipe.family for recipe in RECIPES.values()}
    assert [family for family in FAMILIES if family not in have] == []
    assert {
        f"Wan 2.2 14B {level} noise, {kind}" for level in ("high", "low") for kind in ("text", "image")
    } <= have
    assert all(recipe.source for recipe in RECIPES.values())


@pytest.mark.parametrize("name", RECIPES)
def test_unfolded_into_the_settings_nodes_it_is_the_same(name):
    recipe = RECIPES[name]
    for kind, changes in unfolded(recipe).items():
        node, field = NODES[kind]
        widgets = {item.id: item.default for item in node.GET_SCHEMA().inputs if hasattr(item, "default")}
        assert changes.keys() <= widgets.keys()
        (config,) = node.execute(**widgets | changes).args
        assert config == getattr(recipe, field)


def test_two_experts_share_all_noise_levels_and_train_no_others():
    schedule = FlowSchedule(8.0)
    for kind, boundary in (("text", 0.875), ("image", 0.9)):
        high, low = (
            RECIPES[f"Wan 2.2 14B {level} noise, {kind}: video"].timesteps for level in ("high", "low")
        )
        assert u_range(high, schedule)[0] == pytest.approx(u_range(low, schedule)[1])
        for timesteps, inside in ((high, (boundary, 1)), (low, (0, boundary))):
            sigma = schedule.sigma(draw_u(timesteps, 2000, torch.Generator().manual_seed(0), schedule))
            assert inside[0] - 1e-6 <= float(sigma.min())
            assert float(sigma.max()) <= inside[1] + 1e-6


def test_the_summary_says_what_is_trained_and_where_it_is_from():
    text = RECIPES["Z-Image: style"].summary(FlowSchedule(3.0))
    assert text.startswith("Z-Image: style (a look)\n")
    assert "LoRA: rank 32, alpha 32, on the layers of preset attention+mlp" in text
    assert "learning rate 0.00005," in RECIPES["Qwen-Image: style"].summary(
        FlowSchedule(3.0)
    )  # as widgets show it
    assert "half of them below 0.67" in text  # a shift of 2: 2 / (1 + 2)
    assert "musubi-tuner" in text
    sdxl = RECIPES["SDXL: style"].summary(TableSchedule(torch.linspace(0.03, 14.6, 1000)))
    assert "1024 x 1024" in sdxl
    assert "min-SNR weights with gamma 5" in sdxl
    assert "Loss" not in text


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.kind == "edit"])
def test_every_recipe_for_pairs_says_where_the_other_pictures_go(name):
    assert "control_1" in RECIPES[name].summary(FlowSchedule(3.0))


def test_a_recipe_for_another_model_is_one_line_with_ways_out():
    assert recipe_for("Flux dev: style", "Flux").family == "Flux dev"
    with pytest.raises(
        ValueError, match="must suit the model, got SDXL: style for Flux; choose Flux dev: style or"
    ):
        recipe_for("SDXL: style", "Flux")
    with pytest.raises(ValueError, match="wire the settings nodes"):
        recipe_for("SDXL: style", "SomethingNew")
    with pytest.raises(ValueError, match="recipe must be one of"):
        recipe_for("SDXL: everything", "SDXL")
