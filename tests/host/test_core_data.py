"""ComfyUI's own dataset nodes, as they are, into ours, in a real ComfyUI."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from comfyui_process import ComfyUI
from PIL import Image
from prompt_builder import PromptBuilder

NODES = (
    "LoadImageTextDataSetFromFolder",
    "MakeTrainingDataset",
    "SaveTrainingDataset",
    "LoadTrainingDataset",
)


@pytest.fixture
def folder(comfyui: ComfyUI) -> str:
    """Pictures of two shapes in the input folder, one of them twice."""
    place = comfyui.base / "input" / "core-data"
    place.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i, size in enumerate([(64, 64), (64, 64), (128, 64), (64, 64)]):
        pixels = rng.integers(0, 255, (size[1] // 8, size[0] // 8, 3), np.uint8)
        Image.fromarray(pixels).resize(size).save(place / f"{i}.png")
        (place / f"{i}.txt").write_text(f"caption {i}")
    (place / "3.png").write_bytes((place / "0.png").read_bytes())
    return place.name


def core(comfyui: ComfyUI, *names: str) -> None:
    """Skip where this ComfyUI has not these nodes yet."""
    missing = [name for name in names if name not in comfyui.object_info()]
    if missing:
        pytest.skip(f"this ComfyUI has no {', '.join(missing)}")


def texts(comfyui: ComfyUI, graph: PromptBuilder, node: Any) -> str:
    """What a node says."""
    (text,) = comfyui.queue(graph.prompt)["outputs"][node[0]]["text"]
    return str(text)


def test_lists_of_pictures_and_texts_are_encoded_and_trained(comfyui: ComfyUI, folder: str) -> None:
    core(comfyui, NODES[0])
    graph = PromptBuilder(comfyui.object_info())
    model = graph.add("RolloutLoadDiffusers")
    loaded = graph.add(NODES[0], folder=folder)
    dataset = graph.add("RolloutDatasetFromImages", images=[loaded[0], 0], texts=[loaded[0], 1])
    data = graph.add("RolloutEncodeDataset", model=model, dataset=dataset, resolution=64)
    run = graph.add("RolloutTrainLoRA", model=model, data=data, steps=2, batch_size=2)
    graph.add("PreviewAny", source=[run[0], 2])
    shown = comfyui.queue(graph.prompt)["outputs"]
    assert shown[dataset[0]]["text"][0].startswith("4 pictures")
    assert "4 latents 16x8x8" in shown[data[0]]["text"][0]
    assert shown[data[0]]["images"]  # the contact sheet, in the node


def test_pictures_without_their_doubles_are_encoded(comfyui: ComfyUI, folder: str) -> None:
    core(comfyui, NODES[0], "ImageDeduplication")
    graph = PromptBuilder(comfyui.object_info())
    loaded = graph.add(NODES[0], folder=folder)
    alone = graph.add("ImageDeduplication", images=loaded)
    dataset = graph.add("RolloutDatasetFromImages", images=alone, texts="one for all")
    graph.add("PreviewAny", source=[dataset[0], 1])
    assert texts(comfyui, graph, dataset).startswith("3 pictures")


def from_latents(graph: PromptBuilder, source: Any, latents: Any, conditioning: Any) -> Any:
    """Data of LATENT and CONDITIONING lists, and two steps of training on them."""
    data = graph.add("RolloutDatasetFromLatents", model=source, latents=latents, conditioning=conditioning)
    run = graph.add("RolloutTrainLoRA", model=source, data=data, steps=2, batch_size=2)
    graph.add("PreviewAny", source=[run[0], 2])
    return data


def test_latents_in_resolution_buckets_train(comfyui: ComfyUI) -> None:
    core(comfyui, "ResolutionBucket")
    graph = PromptBuilder(comfyui.object_info())
    base = graph.add("TestTinyModel", family="sd3", dtype="float32")
    source = graph.add("RolloutFromComfyModel", model=base)
    made = graph.add("TestTinyData", family="sd3", n=4, ragged=False)
    bucketed = graph.add("ResolutionBucket", latents=made, conditioning=[made[0], 1])
    data = from_latents(graph, source, bucketed, [bucketed[0], 1])
    plain = graph.add("RolloutDatasetFromLatents", model=source, latents=made, conditioning=[made[0], 1])
    graph.add("PreviewAny", source=[plain[0], 1])
    shown = comfyui.queue(graph.prompt)["outputs"]
    assert shown[data[0]]["text"] == shown[plain[0]]["text"]


def test_a_saved_training_dataset_is_loaded_and_trains(comfyui: ComfyUI) -> None:
    core(comfyui, *NODES[2:])
    graph = PromptBuilder(comfyui.object_info())
    made = graph.add("TestTinyData", family="sd3", n=4, ragged=False)
    graph.add("SaveTrainingDataset", latents=made, conditioning=[made[0], 1], folder_name="tiny")
    comfyui.queue(graph.prompt)
    graph = PromptBuilder(comfyui.object_info())
    base = graph.add("TestTinyModel", family="sd3", dtype="float32")
    source = graph.add("RolloutFromComfyModel", model=base)
    loaded = graph.add("LoadTrainingDataset", folder_name="tiny")
    data = from_latents(graph, source, loaded, [loaded[0], 1])
    shown = comfyui.queue(graph.prompt)["outputs"]
    assert shown[data[0]]["text"][0].startswith("4 latents")
