"""What a user reads in a real ComfyUI when something is wrong: one line that names the widget or the file."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from comfyui_process import ComfyUI, HostError, Prompt
from demo_model import Draw, add_demo, add_draw
from prompt_builder import Link, PromptBuilder

ROOT = Path(__file__).resolve().parents[2]


def dataset(graph: PromptBuilder, **widgets: Any) -> Link:
    return graph.add("RolloutDatasetFromFolder", **widgets)


def refused(host: ComfyUI, prompt: Prompt, node: Link) -> str:
    """The line that the host shows at a node when it refuses a graph."""
    with pytest.raises(HostError) as refusal:
        host.submit(prompt)
    (error,) = refusal.value.answer["node_errors"][node[0]]["errors"]
    assert error["type"] == "custom_validation_failed"
    return one_line(error["details"])


def failed(host: ComfyUI, prompt: Prompt, node: Link) -> str:
    """The line that the host shows when a node fails."""
    with pytest.raises(HostError) as failure:
        host.queue(prompt)
    assert failure.value.answer["node_id"] == node[0]
    return one_line(failure.value.answer["exception_message"])


def one_line(text: str) -> str:
    """The text, which must be a line."""
    assert len(text.strip().splitlines()) == 1
    print(text.strip())
    return text


@pytest.fixture
def folder(comfyui, request):
    """A folder in the host's input folder, named after the test."""
    path = comfyui.base / "input" / request.node.name.split("[")[0]
    path.mkdir(parents=True)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def graph(comfyui):
    return PromptBuilder(comfyui.object_info())


# -- before anything runs --------------------------------------------------------------------------


def refused_dataset(comfyui, graph, name):
    data = dataset(graph, folder=name)
    graph.add("PreviewAny", source=data)
    return refused(comfyui, graph.prompt, data)


def test_a_missing_dataset_folder(comfyui, graph):
    line = refused_dataset(comfyui, graph, "no/such/folder")
    assert "folder" in line
    assert "no/such/folder" in line


def test_an_empty_dataset_folder(comfyui, graph, folder):
    line = refused_dataset(comfyui, graph, folder.name)
    assert folder.name in line
    assert "picture" in line


def test_captions_without_pictures(comfyui, graph, folder):
    (folder / "alone.txt").write_text("a face")
    line = refused_dataset(comfyui, graph, folder.name)
    assert folder.name in line
    assert "picture" in line


def test_a_dataset_whose_only_picture_is_unreadable(comfyui, graph, folder):
    (folder / "broken.png").write_bytes(b"not a picture")
    (folder / "broken.txt").write_text("a face")
    assert "broken.png" in refused_dataset(comfyui, graph, folder.name)


def refused_model(comfyui, graph, name):
    model = graph.add("RolloutLoadDiffusers", folder=name)
    graph.add("RolloutSample", model=model)
    graph.add("PreviewImage", images=["2", 0])
    return refused(comfyui, graph.prompt, model)


def test_a_missing_model_folder(comfyui, graph):
    line = refused_model(comfyui, graph, "no/such/model")
    assert "folder" in line
    assert "no/such/model" in line


def test_a_model_folder_without_an_index(comfyui, graph, folder):
    line = refused_model(comfyui, graph, folder.name)
    assert folder.name in line
    assert "model_index.json" in line


@pytest.fixture
def model_folder(folder):
    """A copy of the demo model."""
    shutil.copytree(ROOT / "demo" / "model", folder, dirs_exist_ok=True)
    return folder


def test_a_model_folder_without_a_transformer(comfyui, graph, model_folder):
    shutil.rmtree(model_folder / "transformer")
    line = refused_model(comfyui, graph, model_folder.name)
    assert model_folder.name in line
    assert "transformer" in line


# -- while it runs ---------------------------------------------------------------------------------


def test_a_picture_without_a_caption(comfyui, graph, folder):
    shutil.copy(ROOT / "demo" / "data" / "neutral-face.png", folder)
    data = dataset(graph, folder=folder.name)
    graph.add("PreviewAny", source=data)
    line = failed(comfyui, graph.prompt, data)
    assert "neutral-face.png must have a caption file" in line
    assert "set a default caption" in line


def failed_sample(comfyui, graph, fails, folder="demo/model", **widgets):
    model = graph.add("RolloutLoadDiffusers", folder=folder)
    sample = graph.add("RolloutSample", model=model, steps=1, **widgets)
    graph.add("PreviewImage", images=sample)
    return failed(comfyui, graph.prompt, {"model": model, "sample": sample}[fails])


def test_transformer_weights_that_are_cut_off(comfyui, graph, model_folder):
    weights = model_folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    line = failed_sample(comfyui, graph, "model", folder=model_folder.name)
    assert model_folder.name in line
    assert "transformer" in line


@pytest.mark.parametrize("prompts", ["", " \n\n "])
def test_empty_prompts(comfyui, graph, prompts):
    assert "prompts" in failed_sample(comfyui, graph, "sample", prompts=prompts)


def test_a_size_that_the_model_cannot_have(comfyui, graph):
    line = failed_sample(comfyui, graph, "sample", width=72)
    assert "width must be a multiple of 16" in line
    assert "72" in line


def test_sigmas_that_end_before_they_start(comfyui, demo, graph):
    sigmas = graph.add("RolloutSigmas", model=add_demo(graph), start=0.2, end=0.4)
    graph.add("TestShowSigmas", sigmas=sigmas)
    assert "start must be above end (0.4), got 0.2" in failed(comfyui, graph.prompt, sigmas)


def test_sigmas_that_rise(comfyui, demo, graph):
    drawn = add_draw(graph, Draw())
    inputs = graph.prompt[drawn[0]]["inputs"]
    inputs["sigmas"] = graph.add("FlipSigmas", sigmas=inputs["sigmas"])
    graph.add("SaveLatent", samples=drawn)
    assert "sigmas must" in failed(comfyui, graph.prompt, drawn)


def test_a_folder_that_is_no_run(comfyui, graph, folder):
    model, data = graph.add("RolloutLoadDiffusers"), dataset(graph)
    encoded = graph.add("RolloutEncodeDataset", model=model, dataset=data)
    run = graph.add("RolloutResumeTraining", model=model, data=encoded, folder=folder.name)
    graph.add("PreviewAny", source=run)
    assert folder.name in failed(comfyui, graph.prompt, run)


@pytest.mark.parametrize("name", ["", "../outside"])
def test_a_lora_name_that_leaves_its_folder(comfyui, graph, name):
    model, data = graph.add("RolloutLoadDiffusers"), dataset(graph)
    encoded = graph.add("RolloutEncodeDataset", model=model, dataset=data)
    run = graph.add("RolloutInitTraining", model=model, data=encoded)
    saved = graph.add("RolloutSaveLoRA", run=run, filename=name)
    assert "filename must be a name inside loras" in failed(comfyui, graph.prompt, saved)


# -- what is no error ------------------------------------------------------------------------------


def test_an_unreadable_picture_among_others_is_named_and_left_out(comfyui, graph, folder):
    for suffix in (".png", ".txt"):
        shutil.copy(ROOT / "demo" / "data" / f"neutral-face{suffix}", folder)
    (folder / "broken.png").write_bytes(b"not a picture")
    (folder / "broken.txt").write_text("a face")
    node, _ = dataset(graph, folder=folder.name)
    graph.add("PreviewAny", source=[node, 0])
    (text,) = comfyui.queue(graph.prompt)["outputs"][node]["text"]
    assert text.startswith("1 pictures")
    assert "broken.png" in text


def test_a_default_caption_will_do(comfyui, graph, folder):
    shutil.copy(ROOT / "demo" / "data" / "neutral-face.png", folder)
    graph.add("PreviewAny", source=dataset(graph, folder=folder.name, default_caption="a face"))
    comfyui.queue(graph.prompt)


def test_folders_may_come_through_a_link_and_are_cached_all_the_same(comfyui, graph):
    place = graph.add("PrimitiveString", value="demo/data")
    word = graph.add("PrimitiveString", value="")
    data = dataset(graph, folder=place, trigger_word=word)
    model = graph.add("RolloutLoadDiffusers", folder=graph.add("PrimitiveString", value="demo/model"))
    encoded = graph.add("RolloutEncodeDataset", model=model, dataset=data)
    graph.add("PreviewAny", source=encoded)
    comfyui.queue(graph.prompt)
    messages = dict(comfyui.queue(graph.prompt)["status"]["messages"])
    assert {data[0], model[0], encoded[0]} <= set(messages["execution_cached"]["nodes"])
