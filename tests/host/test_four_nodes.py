"""The README's four nodes in a real ComfyUI: its own MODEL, CLIP and VAE, and a folder, straight into the trainer."""

from __future__ import annotations

import numpy as np
from comfyui_process import ComfyUI
from PIL import Image
from prompt_builder import PromptBuilder


def make_pictures(comfyui: ComfyUI) -> None:
    """Four pictures with captions in ComfyUI's input folder."""
    place = comfyui.base / "input" / "four-nodes"
    place.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).resize((64, 64)).save(place / f"{i}.png")
        (place / f"{i}.txt").write_text(f"caption {i}")


def test_a_folder_and_a_loaded_model_train_and_save_a_lora(comfyui: ComfyUI) -> None:
    make_pictures(comfyui)
    graph = PromptBuilder(comfyui.object_info())
    model = graph.add("TestTinyModel", family="flux", dtype="float32")
    clip, vae = graph.add("TestTinyClip", family="flux"), graph.add("TestTinyVae", channels=16)
    data = graph.add("RolloutDatasetFromFolder", folder="four-nodes")
    run = graph.add(
        "RolloutTrainLoRA", model=model, clip=clip, vae=vae, data=data, steps=2, run_name="four-nodes"
    )
    saved = graph.add("RolloutSaveLoRA", run=run, filename="four-nodes")
    shown = comfyui.queue(graph.prompt)["outputs"]
    assert "step 2 of 2" in shown[run[0]]["text"][0]
    assert shown[saved[0]]["text"][0].startswith("saved ")
    assert list((comfyui.base / "output").rglob("four-nodes*.safetensors"))


def test_without_save_lora_they_are_three_with_four_wires(comfyui: ComfyUI) -> None:
    make_pictures(comfyui)
    graph = PromptBuilder(comfyui.object_info())
    model = graph.add("TestTinyModel", family="flux", dtype="float32")
    clip, vae = graph.add("TestTinyClip", family="flux"), graph.add("TestTinyVae", channels=16)
    data = graph.add("RolloutDatasetFromFolder", folder="four-nodes")
    run = graph.add("RolloutTrainLoRA", model=model, clip=clip, vae=vae, data=data, steps=2, run_name="three",
                    recipe="automatic", save_lora_as="three-nodes")  # fmt: skip
    summary, saved = comfyui.queue(graph.prompt)["outputs"][run[0]]["text"]
    assert summary.startswith("settings of the recipe Flux dev, style")
    assert saved.startswith("saved ")
    assert list((comfyui.base / "output").rglob("three-nodes.safetensors"))
