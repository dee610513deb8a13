"""`--comfyui`, against a program that behaves like ComfyUI's server; tests/host has the real one."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from rollout_trainer.__main__ import main
from rollout_trainer.host import remote

GRAPH = {
    "1": {"class_type": "Foreign", "inputs": {"name": "b"}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
}


@pytest.fixture
def installation(tmp_path):
    folder = tmp_path / "ComfyUI"
    folder.mkdir()
    shutil.copy(Path(__file__).with_name("fake_comfyui.py"), folder / "main.py")
    return folder


@pytest.fixture
def cli(tmp_path, installation, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(remote, "POLL_SECONDS", 0.02)

    def run(graph, *arguments, mode="", command="run"):
        monkeypatch.setenv("FAKE_MODE", mode)
        (tmp_path / "graph.json").write_text(json.dumps(graph))
        out = ["--out", "results"] if command == "run" else []
        where = ["--comfyui", str(installation), "--comfyui-python", sys.executable]
        code = main([command, "graph.json", *out, *where, *arguments])
        captured = capsys.readouterr()
        return code, captured.err.splitlines(), captured.out.splitlines(), tmp_path / "results"

    return run


def test_a_run_collects_pictures_texts_and_reports(cli, installation):
    code, errors, _, out = cli(GRAPH, "--set", "1.size=9")
    assert code == 0, errors
    report = json.loads((out / "report.json").read_text())
    assert report["images"] == ["made.png", "preview/glance.png"]
    assert (out / "preview" / "glance.png").read_bytes() == b"/view?filename=glance.png&subfolder=&type=temp"
    assert report["seed"] == 9
    assert report["texts"] == {"node 2 (SaveImage)": "workflow none\nFalse"}
    assert report["peak_memory_mb"] > 1
    assert [path.name for path in installation.iterdir()] == ["main.py"]


def test_a_saved_workflow_travels_with_the_prompt(cli):
    node = {"id": 1, "type": "Foreign", "widgets_values": [3, "a"], "inputs": [], "outputs": []}
    saving = {"id": 2, "type": "SaveImage", "inputs": [{"name": "images", "type": "IMAGE", "link": 1}]}
    workflow = {"id": "w7", "nodes": [node, saving], "links": [[1, 1, 0, 2, 0, "IMAGE"]]}
    _, _, _, out = cli(workflow)
    report = json.loads((out / "report.json").read_text())
    assert report["seed"] == 3
    assert report["texts"]["node 2 (SaveImage)"].startswith("workflow w7")


def test_validate_only_starts_and_stops_it(cli, tmp_path):
    assert cli(GRAPH, command="validate")[2] == ["graph.json is valid: 2 nodes"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ComfyUI", "graph.json"]


@pytest.mark.parametrize(
    ("mode", "change", "line"),
    [
        ("refuses", {}, "error: node 1 (Foreign): Value not in list: name: 'c' not in ['a', 'b']"),
        (
            "",
            {"class_type": "Foregn"},
            "error: node 1 (Foregn): Foregn must be a known node (like Foreign?);",
        ),
    ],
)
def test_what_comfyui_refuses_is_one_line_each_and_leaves_nothing(cli, tmp_path, mode, change, line):
    code, errors, _, _ = cli(GRAPH | {"1": GRAPH["1"] | change}, mode=mode)
    assert code == 2
    assert errors[-1].startswith(line)
    assert len([text for text in errors if text.startswith("error: ")]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ComfyUI", "graph.json"]


@pytest.mark.parametrize(
    ("mode", "line"),
    [
        ("dies", "error: ComfyUI stopped with exit code 1 while it started; it printed:"),
        ("no pack", "error: ComfyUI could not load this pack; it printed:"),
        ("node fails", "error: node 1 (Foreign): out of luck"),
        ("stops", "error: ComfyUI stopped with exit code 3 before the workflow ended"),
    ],
)
def test_failures_in_comfyui_are_told(cli, mode, line):
    code, errors, _, _ = cli(GRAPH, mode=mode)
    assert code == 1
    assert line in errors


def test_ctrl_c_is_passed_on_and_waited_for(cli, monkeypatch):
    submit = remote.Server._submit

    def submit_and_interrupt(self, graph):
        prompt_id = submit(self, graph)
        os.kill(os.getpid(), signal.SIGINT)
        return prompt_id

    monkeypatch.setattr(remote.Server, "_submit", submit_and_interrupt)
    code, _, printed, out = cli(GRAPH, mode="waits")
    assert code == 130
    assert printed[0] == "Cancelled"
    assert json.loads((out / "report.json").read_text())["texts"]["node 2 (SaveImage)"].endswith("True")


def test_ctrl_c_while_it_starts_leaves_nothing(cli, monkeypatch, tmp_path):
    ready = remote._wait_until_ready

    def interrupt(server, host):
        os.kill(os.getpid(), signal.SIGINT)
        ready(server, host)

    monkeypatch.setattr(remote, "_wait_until_ready", interrupt)
    code, _, printed, _ = cli(GRAPH)
    assert (code, printed) == (130, ["Cancelled"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ComfyUI", "graph.json"]


def test_folders_that_are_no_installation(tmp_path, capsys):
    (tmp_path / "graph.json").write_text(json.dumps(GRAPH))
    run = ["run", str(tmp_path / "graph.json"), "--out", str(tmp_path / "out"), "--comfyui"]
    assert main([*run, str(tmp_path)]) == 2
    assert "--comfyui must be a ComfyUI folder with a main.py" in capsys.readouterr().err
    (tmp_path / "main.py").touch()
    assert main([*run, str(tmp_path)]) == 2
    assert "--comfyui must have a venv" in capsys.readouterr().err
