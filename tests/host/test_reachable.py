"""A ComfyUI that other machines reach, by its `--listen`: the pack's widgets show them no more than its own folders.

It is asked from this machine alone.
"""

from __future__ import annotations

import json
import os
import shutil
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from comfyui_process import HOW_TO, ROOT, ComfyUI, HostError, find_installation, running
from prompt_builder import PromptBuilder
from test_errors import failed, refused

RULE = "must lie in the input, output or model folders of this ComfyUI"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders beside the host's: one that nobody opened, and one that the owner names."""
    found = {name: tmp_path_factory.mktemp(name) for name in ("closed", "opened", "base")}
    for name in ("closed", "opened"):
        shutil.copytree(ROOT / "demo" / "data", found[name] / "faces")
        (found[name] / "config.json").write_text("{}")
    for name in ("neighbour-secret.txt", "lora.safetensors"):
        (found["closed"] / name).write_text("secret")
    return found


@pytest.fixture(scope="module")
def reached(places: dict[str, Path]) -> Iterator[ComfyUI]:
    """That ComfyUI."""
    installation = find_installation()
    if installation is None:
        pytest.skip(f"no ComfyUI found: {HOW_TO}")
    inside = places["base"] / "input"
    inside.mkdir()
    shutil.copytree(ROOT / "demo" / "data", inside / "faces")
    (inside / "link").symlink_to(places["closed"] / "faces")
    (inside / "mixed").mkdir()
    (inside / "mixed" / "a.png").symlink_to(next((places["closed"] / "faces").glob("*.png")))
    os.environ["ROLLOUT_TRAINER_FOLDERS"] = str(places["opened"])
    try:
        with running(installation, places["base"], ["--listen", "0.0.0.0"]) as host:
            yield host
    finally:
        del os.environ["ROLLOUT_TRAINER_FOLDERS"]


def line(host: ComfyUI, node: str, **widgets: Any) -> str:
    """What the host says of a node with a path in it."""
    graph = PromptBuilder(host.object_info())
    if node in ("RolloutLoadLoRA", "RolloutResumeTraining"):
        widgets["model"] = graph.add("RolloutLoadDiffusers")
    if node == "RolloutResumeTraining":
        widgets["data"] = graph.add("RolloutDatasetFromFolder")
    own = graph.add(node, **widgets)
    graph.add("PreviewAny", source=own)
    try:
        return refused(host, graph.prompt, own)
    except pytest.fail.Exception:
        return failed(host, graph.prompt, own)


WIDGETS = {
    "RolloutDatasetFromFolder": "folder",
    "RolloutLoadDiffusers": "folder",
    "RolloutLoadLoRA": "file",
    "RolloutResumeTraining": "folder",
    "RolloutSettingsFromJSON": "config",
}


def test_every_widget_that_takes_a_path_is_tried_here(reached: ComfyUI) -> None:
    takes = {
        node
        for node, info in reached.object_info().items()
        if node.startswith("Rollout")
        for name, own in {**info["input"].get("required", {}), **info["input"].get("optional", {})}.items()
        if name in ("folder", "file", "path", "config") and own[0] == "STRING"
    }
    assert takes == {*WIDGETS, "RolloutApplyLoRA"}  # which finds its file as RolloutLoadLoRA does


@pytest.mark.parametrize("node", WIDGETS)
def test_other_places_are_refused_alike_whether_there_is_something_or_not(
    node: str, reached: ComfyUI, places: dict[str, Path]
) -> None:
    closed = places["closed"]
    there = {
        "RolloutDatasetFromFolder": "faces", "RolloutLoadDiffusers": "faces", "RolloutLoadLoRA": "lora.safetensors",
        "RolloutResumeTraining": "faces", "RolloutSettingsFromJSON": "config.json",
    }[node]  # fmt: skip
    up = os.path.relpath(closed, places["base"] / "input")
    for text in (
        f"{closed}/{there}",
        f"{closed}/nothing",
        f"{up}/{there}",
        f"file://{closed}/{there}",
        "/etc/passwd",
    ):
        told = line(reached, node, **{WIDGETS[node]: text})
        assert RULE in told, told
        assert "secret" not in told
        assert "ROLLOUT_TRAINER_FOLDERS" in told
    control = {"folder": "faces", "control_1": f"{closed}/faces"}
    if node == "RolloutDatasetFromFolder":
        assert RULE in line(reached, node, **control)
        assert "there is no such folder" in line(reached, node, folder="link")
        assert RULE in line(reached, node, folder=str(places["base"] / "input" / "link"))
        assert "links must lead to what lies in the input" in line(reached, node, folder="mixed")


def test_its_own_folders_the_demo_and_what_the_owner_names_are_open(
    reached: ComfyUI, places: dict[str, Path]
) -> None:
    for folder in ("faces", "input/faces", "demo/data", str(places["opened"] / "faces"), "faces/../faces"):
        graph = PromptBuilder(reached.object_info())
        data = graph.add("RolloutDatasetFromFolder", folder=folder)
        graph.add("PreviewAny", source=data)
        reached.queue(graph.prompt)
    graph = PromptBuilder(reached.object_info())
    settings = graph.add("RolloutSettingsFromJSON", config=str(places["opened"] / "config.json"))
    graph.add("PreviewAny", source=settings)
    reached.queue(graph.prompt)


def test_routes_name_no_file_outside_a_run(reached: ComfyUI, places: dict[str, Path]) -> None:
    runs = places["base"] / "output" / "rollout_trainer" / "runs"
    real = runs / "real-0001"
    real.mkdir(parents=True)
    (real / "config.json").write_text(json.dumps({"version": 1, "config": {}, "model": {}, "data": {}}))
    (runs / "linked").symlink_to(places["closed"])
    (real / "film").symlink_to(places["closed"])
    (real / "samples").symlink_to(places["closed"])
    (real / "panel.json").symlink_to(places["closed"] / "neighbour-secret.txt")
    for name in ("linked", "..", "../..", f"..{places['closed']}", str(places["closed"]), "real-0001"):
        quoted = urllib.parse.quote(name, safe="")
        for path in ("", "/film", "/film/0/0", "/samples", "/samples/0/0", "/thumbnail"):
            try:
                answer = reached.request(f"/rollout_trainer/runs/{quoted}{path}").decode(errors="replace")
            except HostError as err:
                answer = str(err)
            assert "secret" not in answer
