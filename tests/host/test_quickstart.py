"""workflows/quickstart.json in a real ComfyUI, beside the same file run headless, with few steps and prompts."""

from __future__ import annotations

import io
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_process import ComfyUI, History, Prompt, link_pack
from demo_model import Draw, add_draw, add_model, model_space
from PIL import Image
from prompt_builder import PromptBuilder
from safetensors.torch import load_file

from rollout_trainer.host.graph.catalog import from_nodes, from_object_info
from rollout_trainer.host.graph.reading import parse, read_file
from rollout_trainer.host.standalone.core_nodes import CORE_NODES
from rollout_trainer.nodes import NODES

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = ROOT / "workflows" / "quickstart.json"
STEPS, SAMPLE_STEPS = 24, 6
PROMPTS = ("clown face, blob style, white background", "flushed face, blob style, white background")
FEWER = {
    "RolloutTrainLoRA": {"steps": STEPS},
    "RolloutSample": {"steps": SAMPLE_STEPS},
    "PrimitiveStringMultiline": {"value": "\n".join(PROMPTS)},
}


def node_of(prompt: Prompt, class_type: str, title: str = "") -> str:
    """The id of the one node of a class (and title)."""
    titled = {id: n for id, n in prompt.items() if title in n.get("_meta", {}).get("title", "")}
    (found,) = (id for id, n in titled.items() if n["class_type"] == class_type)
    return found


def with_fewer_steps(prompt: Prompt) -> Iterator[tuple[str, str, Any]]:
    """The widgets that make a short run of the quick start: node, widget, value."""
    for id, node in prompt.items():
        for widget, value in FEWER.get(node["class_type"], {}).items():
            yield id, widget, value


@dataclass(frozen=True)
class Quickstart:
    """The quick start as it ran in the host."""

    host: ComfyUI
    prompt: Prompt
    entry: History
    trained: list[Any]  # progress events of the training node
    after: str  # the node that keeps the pictures of the trained model

    def texts(self, class_type: str) -> str:
        """What a node shows below itself."""
        return "\n".join(self.entry["outputs"][node_of(self.prompt, class_type)]["text"])

    @property
    def lora(self) -> Path:
        """The file that was saved."""
        return Path(self.texts("RolloutSaveLoRA").removeprefix("saved "))

    def runs(self) -> list[Path]:
        """The run folders that there are now."""
        return list((self.host.base / "output" / "rollout_trainer" / "runs").iterdir())


@pytest.fixture(scope="module")
def quickstart(comfyui: ComfyUI) -> Quickstart:
    graph = parse(read_file(WORKFLOW), from_object_info(comfyui.object_info()))
    prompt = graph.to_api()
    for id, widget, value in with_fewer_steps(prompt):
        prompt[id]["inputs"][widget] = value
    after = [node_of(prompt, "RolloutSample", "After"), 0]
    prompt["after"] = {
        "class_type": "SaveImage",
        "inputs": {"images": after, "filename_prefix": "quickstart/after"},
    }
    entry, trained = run(comfyui, prompt)
    return Quickstart(comfyui, prompt, entry, trained, "after")


def run(host: ComfyUI, prompt: Prompt) -> tuple[History, list[Any]]:
    """Run a graph; return its history entry and the training node's progress events."""
    train = node_of(prompt, "RolloutTrainLoRA")
    with host.events() as events:
        entry = host.queue(prompt, timeout=240)
        assert events.wait_for(lambda seen: any(data["node"] is None for data in seen.of_type("executing")))
    return entry, [data for data in events.of_type("progress") if data["node"] == train]


@pytest.fixture(scope="module")
def headless(quickstart: Quickstart, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of the same workflow file, run by this interpreter without ComfyUI."""
    folder = tmp_path_factory.mktemp("headless")
    link_pack(ROOT, folder / "rollout_trainer")
    settings = [f"{id}.{widget}={value}" for id, widget, value in with_fewer_steps(quickstart.prompt)]
    command = [sys.executable, "-m", "rollout_trainer", "run", str(WORKFLOW), "--out", str(folder / "out")]
    command += [part for setting in settings for part in ("--set", setting)]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads((folder / "out" / "report.json").read_text())
    return report


def test_both_hosts_read_the_same_graph_from_the_file(comfyui):
    content = read_file(WORKFLOW)
    ours = parse(content, from_nodes([*CORE_NODES, *NODES]))
    theirs = parse(content, from_object_info(comfyui.object_info()))
    assert ours.nodes == theirs.nodes


def test_all_its_pictures_arrive(quickstart):
    sizes = {}
    for id, node in quickstart.prompt.items():
        if node["class_type"] == "SaveImage":
            for image in quickstart.entry["outputs"][id]["images"]:
                picture = Image.open(io.BytesIO(quickstart.host.view(image)))
                sizes.setdefault(node["inputs"]["filename_prefix"].split("/")[1], []).append(picture.size)
                assert np.asarray(picture.convert("RGB"), dtype=float).std() > 10
    print(f"pictures: {sizes}")
    assert sizes["after"] == [(128, 128)] * len(PROMPTS)
    assert sizes["loss"] == [(900, 500)]
    assert len(sizes["rollout"]) == 2  # samples of the preview
    ((width, height),) = sizes["before_after"]
    assert width > 2 * 128
    assert height > 2 * 128


def test_training_reports_its_progress(quickstart):
    assert quickstart.trained[-1]["value"] == quickstart.trained[-1]["max"] == STEPS
    assert f"step {STEPS} of {STEPS}" in quickstart.texts("RolloutTrainLoRA")


def test_the_lora_lies_where_the_hosts_loader_lists_it(quickstart):
    name = quickstart.lora.name
    assert quickstart.lora.is_file()
    loader = quickstart.host.object_info()["LoraLoader"]
    assert name in loader["input"]["required"]["lora_name"][0]
    assert name in quickstart.host.get_json("/models/loras")


def test_the_lora_equals_the_headless_one(quickstart, headless):
    host, own = load_file(quickstart.lora), load_file(headless["lora"])
    assert host.keys() == own.keys()
    assert max(float(t.abs().max()) for t in host.values()) > 0.01  # it has learnt something
    difference = max(float((host[name] - own[name]).abs().max()) for name in host)
    system = quickstart.host.get_json("/system_stats")["system"]
    print(f"LoRA in ComfyUI {system['comfyui_version']} (python {system['python_version'].split()[0]}, torch "
          f"{system['pytorch_version']}) against headless (python {platform.python_version()}, torch "
          f"{torch.__version__}), {len(host)} tensors: largest difference {difference:.1e}")  # fmt: skip
    assert difference < 1e-6


# The host keeps the results of the last graph alone: no test of another graph may come before these two.
def test_queueing_again_trains_nothing(quickstart):
    before = quickstart.runs()
    entry, trained = run(quickstart.host, quickstart.prompt)
    (cached,) = (data["nodes"] for name, data in entry["status"]["messages"] if name == "execution_cached")
    assert trained == []
    assert node_of(quickstart.prompt, "RolloutTrainLoRA") in cached
    assert quickstart.runs() == before


def test_a_new_file_name_trains_nothing(quickstart):
    before = quickstart.runs()
    prompt = json.loads(json.dumps(quickstart.prompt))
    prompt[node_of(prompt, "RolloutSaveLoRA")]["inputs"]["filename"] = "another/name"
    _, trained = run(quickstart.host, prompt)
    assert trained == []
    assert quickstart.runs() == before
    renamed = quickstart.lora.with_name("another") / "name.safetensors"
    assert load_file(renamed).keys() == load_file(quickstart.lora).keys()


@pytest.mark.parametrize("strength", [1.0, 0.0])
def test_the_stock_loader_and_our_sampler_draw_the_picture_that_our_sample_node_drew(
    quickstart, demo, strength
):
    sample = quickstart.prompt[node_of(quickstart.prompt, "RolloutSample", "After")]["inputs"]
    demo.keep_conditioning("quickstart", PROMPTS[:1])
    graph = PromptBuilder()
    lora = {"lora_name": quickstart.lora.name, "strength_model": strength}
    adapted = graph.add("LoraLoaderModelOnly", model=add_model(graph), **lora)
    model = graph.add("ModelSamplingSD3", model=adapted, shift=1.0)
    same = {name: sample[name] for name in ("sampler", "order", "steps", "cfg", "seed")}
    drawn = add_draw(graph, Draw(**same), model=model, captions="quickstart")
    picture = demo.source.decode_latents(model_space(demo.run(drawn, graph)))[0].permute(1, 2, 0)
    levels = (picture * 255).floor()  # as the host saves pictures
    kept = quickstart.entry["outputs"][quickstart.after]["images"][0]
    own = torch.from_numpy(np.array(Image.open(io.BytesIO(quickstart.host.view(kept))).convert("RGB")))
    off = (levels - own).abs()
    print(
        f"stock LoRA loader at {strength} and RolloutSampler against RolloutSample: at most {off.max():.0f} of "
        f"255 levels, other at {(off > 0).double().mean():.3%} of the values"
    )
    assert (off.max() <= 1 and (off > 0).double().mean() < 0.001) == (strength == 1)
