"""`host/comfyui.py`, the stand-ins for core nodes, and `--comfyui`, in and against a real ComfyUI."""

import json
import struct

import pytest
from comfyui_process import environment, find_installation
from PIL import Image

from rollout_trainer.__main__ import main
from rollout_trainer.host.graph.catalog import from_nodes, from_object_info
from rollout_trainer.host.standalone.core_nodes import CORE_NODES

TRAINING = {
    "1": {"class_type": "RolloutLoadDiffusers", "inputs": {}},
    "2": {"class_type": "RolloutDatasetFromFolder", "inputs": {}},
    "3": {"class_type": "RolloutEncodeDataset", "inputs": {"model": ["1", 0], "dataset": ["2", 0]}},
    "4": {"class_type": "RolloutTrainLoRA", "inputs": {"model": ["1", 0], "data": ["3", 0], "steps": 5000}},
    "5": {"class_type": "RolloutSaveLoRA", "inputs": {"run": ["4", 0]}},
}
TEXT_EVENT = 3
"""Type of the binary message that carries progress text; then the length of the node's id, the id, the text."""


def three_steps_were_trained(seen):
    return any(data["node"] == "4" and data["value"] >= 3 for data in seen.of_type("progress"))


def with_defaults(prompt, catalog):
    """Fill in what ComfyUI wants to have spelled out."""
    return {
        id: node
        | {
            "inputs": {s.name: s.default for s in catalog[node["class_type"]].inputs if s.widget}
            | node["inputs"]
        }
        for id, node in prompt.items()
    }


@pytest.fixture(scope="module")
def real(comfyui):
    return from_object_info(comfyui.object_info())


@pytest.mark.parametrize("ours", from_nodes(CORE_NODES).values(), ids=lambda spec: spec.class_type)
def test_core_nodes_have_the_inputs_and_widgets_of_the_originals(ours, real):
    theirs = real[ours.class_type]
    assert [(i.name, i.type, i.widget, i.control) for i in ours.inputs] == [
        (i.name, i.type, i.widget, i.control) for i in theirs.inputs
    ]
    assert [o.type for o in ours.outputs][: len(theirs.outputs)] == [o.type for o in theirs.outputs]
    assert ours.is_output == theirs.is_output


def test_a_training_shows_its_progress_and_is_saved_when_cancelled(comfyui, real):
    with comfyui.events() as events:
        prompt_id = comfyui.submit(with_defaults(TRAINING, real))
        assert events.wait_for(three_steps_were_trained, timeout=120), comfyui.tail()
        comfyui.interrupt()
        entry = comfyui.wait(prompt_id)
        texts = [data for data in events.binary if struct.unpack(">I", data[:4])[0] == TEXT_EVENT]
    assert "execution_interrupted" in [name for name, _ in entry["status"]["messages"]]
    assert any(b"loss" in text and text[8:9] == b"4" for text in texts)
    states = {path.stem for path in comfyui.base.glob("output/rollout_trainer/runs/*/state-*.safetensors")}
    assert states - {"state-00000000"}, "the state at the cancel was not saved"


def contents(folder):
    """What lies in an installation, but for `input/3d`, which a ComfyUI makes when it is started for the first time."""
    return {
        path: path.stat().st_mtime_ns for path in folder.glob("*/*") if path.parts[-2:] != ("input", "3d")
    }


def test_a_workflow_with_foreign_nodes_runs_from_the_terminal(tmp_path, monkeypatch, capsys):
    installation = find_installation()
    if installation is None:
        pytest.skip("no ComfyUI found")
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    monkeypatch.chdir(tmp_path)
    graph = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 24, "height": 16, "color": 0xFF}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "blue/one"}},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    (tmp_path / "graph.json").write_text(json.dumps(graph))
    before = contents(installation.folder)
    where = ["--comfyui", str(installation.folder), "--comfyui-python", str(installation.python)]
    assert main(["run", "graph.json", "--device", "cpu", "--set", "1.batch_size=2", *where]) == 0, (
        capsys.readouterr()
    )
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(report["images"]) == 4
    for name in report["images"]:
        assert Image.open(tmp_path / "out" / name).getpixel((0, 0)) == (0, 0, 255)
    assert before == contents(installation.folder)
