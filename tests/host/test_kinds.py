"""Kinds of training beyond text to picture, in a real ComfyUI through its own conditioning nodes, on tiny models."""

from __future__ import annotations

import pytest
from comfyui_process import HostError
from test_models import Host, Training, host, shown_loss, training, validation

__all__ = ["host"]


def edit(t: Training, seed_side: int = 8) -> None:
    """Give every caption a reference picture, by the stock node."""
    picture = t.graph.add("TestTinyData", family="flux", n=1, side=seed_side)
    data = t.graph.prompt[t.data[0]]["inputs"]
    data["conditioning"] = t.graph.add("ReferenceLatent", conditioning=t.captions, latent=picture)


def test_an_edit_model_trains_on_reference_pictures(host: Host) -> None:
    plain, edited = training("flux", run_name="plain"), training("flux", run_name="edited")
    edit(edited, 12)  # a reference of another size than the picture
    losses = []
    for t in (plain, edited):
        run = t.steps(8)
        first, last = validation(t, t.run), validation(t, run)
        outputs = host.run(t.graph)
        losses.append((shown_loss(outputs, first), shown_loss(outputs, last)))
        assert losses[-1][1] < losses[-1][0]
    assert losses[0][0] != losses[1][0]  # the network sees the reference


def test_two_experts_are_validated_and_filmed_within_their_own_noise_levels(host: Host) -> None:
    losses = {}
    for name, limits in (("whole", {}), ("high", {"sigma_low": 0.875}), ("low", {"sigma_high": 0.875})):
        t = training("wan", run_name=name, preview_every=4)
        t.graph.prompt[t.run[0]]["inputs"]["timesteps"] = t.graph.add("RolloutTimestepSettings", **limits)
        first = validation(t, t.run)
        last = validation(t, t.steps(6))
        outputs = host.run(t.graph)
        losses[name] = (shown_loss(outputs, first), shown_loss(outputs, last))
        assert losses[name][1] < losses[name][0]
    print(f"wan, validation loss by expert: {losses}")
    assert len({first for first, _ in losses.values()}) == 3


@pytest.mark.parametrize(("recipe", "refused"), [("Flux dev: style", False), ("SDXL: style", True)])
def test_a_recipe_trains_its_model_and_no_other(host: Host, recipe: str, refused: bool) -> None:
    t = training("flux", run_name="recipe")
    made, _ = t.graph.add("RolloutRecipe", model=t.source, recipe=recipe)
    inputs = t.graph.prompt[t.run[0]]["inputs"]
    inputs |= {"lora": [made, 0], "optimizer": [made, 1], "timesteps": [made, 2], "loss": [made, 3]}
    shown, _ = t.graph.add("PreviewAny", source=[made, 5])
    t.steps(2)
    if refused:
        with pytest.raises(HostError, match="recipe must suit the model, got SDXL: style for Flux"):
            host.run(t.graph)
        return
    (text,) = host.run(t.graph)[shown]["text"]
    assert "noise levels" in text
    assert "of preset attention+mlp" in text
