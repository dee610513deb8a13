"""A trial in a real ComfyUI, over its own MODEL: two arms, one of which preserves, and the same again from the disk."""

from __future__ import annotations

import numpy as np
from comfyui_process import ComfyUI
from PIL import Image
from prompt_builder import PromptBuilder


def test_two_ways_to_train_are_compared_and_what_was_trained_is_kept(comfyui: ComfyUI) -> None:
    place = comfyui.base / "input" / "trial"
    place.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).resize((64, 64)).save(place / f"{i}.png")
        (place / f"{i}.txt").write_text(f"caption {i}")

    def carried_out(seeds: int) -> str:
        graph = PromptBuilder(comfyui.object_info())
        model = graph.add("TestTinyModel", family="flux", dtype="float32")
        clip, vae = graph.add("TestTinyClip", family="flux"), graph.add("TestTinyVae", channels=16)
        source = graph.add("RolloutFromComfyModel", model=model, clip=clip, vae=vae)
        folder = graph.add("RolloutDatasetFromFolder", folder="trial")
        # By themselves pictures would get the model's own size, which is minutes of training.
        data = graph.add("RolloutEncodeDataset", model=source, dataset=folder, resolution=64)
        held = graph.add(
            "RolloutScheduledSampling", max_step_offset=0, preserve="caption a\ncaption b", preserve_steps=2
        )
        trial = graph.add(
            "RolloutTrial", model=model, clip=clip, vae=vae, data=data, arms="plain\nconnected", seeds=seeds,
            steps=3, hold_out=0.4, cfg="1", scheduled_sampling=held, trial_name="host",
        )  # fmt: skip
        plot, pictures, run = ([trial[0], output] for output in (1, 2, 3))
        seen = [graph.add("PreviewImage", images=images) for images in (plot, pictures)]
        saved = graph.add("RolloutSaveLoRA", run=run, filename="trial")
        shown = comfyui.queue(graph.prompt)["outputs"]
        assert shown[saved[0]]["text"][0].startswith("saved ")
        assert [len(shown[preview[0]]["images"]) for preview in seen] == [1, 1]
        return str(shown[trial[0]]["text"][0])

    one = carried_out(1)
    assert "connected against plain" in one
    assert "of one seed, which may be chance" in one
    (folder,) = (comfyui.base / "output").rglob("host-*")
    first = {path: path.stat().st_mtime_ns for path in folder.rglob("state-*")}
    two = carried_out(2)
    assert "2 seeds" in two
    assert first
    assert {path: path.stat().st_mtime_ns for path in first} == first  # not trained again
    assert list((comfyui.base / "output").rglob("trial*.safetensors"))
