"""A folder of pictures in a real ComfyUI: changes are noticed, captions are encoded in variants."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from comfyui_process import ComfyUI
from prompt_builder import PromptBuilder
from safetensors.torch import load_file
from test_cancel import saved_lora

DEMO = Path(__file__).resolve().parents[2] / "demo" / "data"


def cached(host: ComfyUI, graph: PromptBuilder) -> set[str]:
    """Queue a graph; the nodes that did not run."""
    messages: dict[str, Any] = dict(host.queue(graph.prompt)["status"]["messages"])
    return set(messages["execution_cached"]["nodes"])


@pytest.fixture
def folder(comfyui: ComfyUI) -> Path:
    place = comfyui.base / "input" / "two-faces"
    place.mkdir(parents=True)
    for name in ("neutral-face", "sad-but-relieved-face"):
        for suffix in (".png", ".txt"):
            shutil.copy(DEMO / (name + suffix), place)
    return place


def test_a_changed_file_is_noticed_though_the_folder_comes_through_a_link(comfyui, folder):
    graph = PromptBuilder(comfyui.object_info())
    place = graph.add("PrimitiveString", value=folder.name)
    data = graph.add("RolloutDatasetFromFolder", folder=place)
    other = graph.add("RolloutDatasetFromFolder")
    graph.add("PreviewAny", source=[data[0], 1])
    graph.add("PreviewAny", source=[other[0], 1])
    comfyui.queue(graph.prompt)
    assert {data[0], other[0]} <= cached(comfyui, graph)
    (folder / "neutral-face.txt").write_text("another caption")
    (folder / "sad-but-relieved-face.png").unlink()
    (text,) = comfyui.queue(graph.prompt)["outputs"][data[0]]["text"]
    assert text.startswith("1 pictures")
    assert {data[0], other[0]} <= cached(comfyui, graph)


def test_variants_of_captions_train_another_lora(comfyui):
    def lora(name: str, **widgets: Any) -> dict[str, Any]:
        graph = PromptBuilder(comfyui.object_info())
        model, dataset = graph.add("RolloutLoadDiffusers"), graph.add("RolloutDatasetFromFolder")
        data = graph.add("RolloutEncodeDataset", model=model, dataset=dataset, **widgets)
        run = graph.add("RolloutTrainLoRA", model=model, data=data, steps=3, batch_size=4, run_name=name)
        return load_file(saved_lora(comfyui, graph, run, name))

    plain, same, other = lora("plain"), lora("one", caption_variants=1), lora("four", caption_variants=4)
    assert all((plain[name] == same[name]).all() for name in plain)
    assert any((plain[name] != other[name]).any() for name in plain)
