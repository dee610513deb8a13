"""Two ComfyUIs that train one LoRA on a MODEL of theirs through `--comfyui`, and one that goes on with it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfyui_process import (
    NODES_FOR_TESTS,
    ROOT,
    ComfyUI,
    environment,
    find_installation,
    free_port,
    link_pack,
)
from PIL import Image
from prompt_builder import PromptBuilder
from safetensors.torch import load_file

LAUNCH = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("rollout_trainer", {init!r}, submodule_search_locations=[{root!r}])
sys.modules["rollout_trainer"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["rollout_trainer"])
from rollout_trainer.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with pictures, and an interpreter whose ComfyUI has the nodes of the tests too."""
    installation = find_installation()
    if installation is None:
        pytest.skip("no ComfyUI found")
    packs = tmp_path / "packs"
    packs.mkdir()
    link_pack(NODES_FOR_TESTS, packs / "nodes_for_tests")
    (tmp_path / "more.yaml").write_text(json.dumps({"tests": {"custom_nodes": str(packs)}}))
    python = tmp_path / "python"
    more = shlex.join(["--extra-model-paths-config", str(tmp_path / "more.yaml")])
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(str(installation.python))} "$@" {more}\n')
    python.chmod(0o755)
    pictures, rng = tmp_path / "pictures", np.random.default_rng(0)
    pictures.mkdir()
    for i in range(4):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).resize((64, 64)).save(
            pictures / f"{i}.png"
        )
        (pictures / f"{i}.txt").write_text(f"caption {i}")
    return tmp_path


def add_model(graph: PromptBuilder) -> dict[str, Any]:
    """A MODEL, and data encoded by its own parts: small, not at the model's own size."""
    model = graph.add("TestTinyModel", family="flux", dtype="float32")
    clip, vae = graph.add("TestTinyClip", family="flux"), graph.add("TestTinyVae", channels=16)
    folder = graph.add("RolloutDatasetFromFolder", folder="pictures")
    source = graph.add("RolloutFromComfyModel", model=model, clip=clip, vae=vae)
    data = graph.add("RolloutEncodeDataset", model=source, dataset=folder, resolution=64)
    return {"model": model, "clip": clip, "vae": vae, "data": data}


def run(place: Path, graph: PromptBuilder, out: str, size: int = 1) -> Path:
    """Run a graph in `size` ComfyUIs; where the results are."""
    installation = find_installation()
    assert installation is not None
    path = place / f"{out}.json"
    path.write_text(json.dumps(graph.prompt))
    code = LAUNCH.format(init=str(ROOT / "__init__.py"), root=str(ROOT))
    command = [sys.executable, "-c", code, "run", path.name, "--out", out, "--device", "cpu"]
    command += ["--comfyui", str(installation.folder), "--comfyui-python", str(place / "python")]
    group = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    env = {**os.environ, "PYTHONPATH": environment()["PYTHONPATH"], "OMP_NUM_THREADS": "1", **group}
    ranks = [
        subprocess.Popen(
            command,
            cwd=place,
            env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    told = [rank.communicate(timeout=600)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * size, "\n".join(told)
    return place / out


def lora_of(out: Path) -> dict[str, Any]:
    """The LoRA that a run has saved."""
    (path,) = out.rglob("several*.safetensors")
    return load_file(path)


@pytest.mark.timeout(1200)  # four starts of ComfyUI
def test_two_hosts_train_a_model_together_and_one_goes_on(comfyui: ComfyUI, place: Path) -> None:
    info = comfyui.object_info()

    def trained(steps: int) -> PromptBuilder:
        graph = PromptBuilder(info)
        rollouts = graph.add("RolloutScheduledSampling", max_step_offset=3, probability=0.7)
        own = {"steps": steps, "batch_size": 3, "run_name": "several", "scheduled_sampling": rollouts}
        made = graph.add("RolloutTrainLoRA", **own, **add_model(graph))
        graph.add("RolloutSaveLoRA", run=made, filename="several")
        return graph

    whole = lora_of(run(place, trained(6), "whole"))
    together = run(place, trained(4), "together", size=2)
    (folder,) = [path.parent for path in together.rglob("config.json")]
    assert (folder / "state-00000004.safetensors").is_file()

    graph = PromptBuilder(info)
    reopened = graph.add("RolloutResumeTraining", folder=str(folder), **add_model(graph))
    rest = graph.add("RolloutTrainSteps", run=reopened, steps=2)
    graph.add("RolloutSaveLoRA", run=rest, filename="several")
    resumed = lora_of(run(place, graph, "resumed"))
    assert resumed.keys() == whole.keys()
    assert max(float(tensor.abs().max()) for tensor in whole.values()) > 1e-4
    difference = max(float((whole[name] - resumed[name]).abs().max()) for name in whole)
    print(f"two hosts, then one, against one: largest difference {difference:.1e}")
    assert difference < 1e-5
