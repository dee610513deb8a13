"""The command line, run in this process with the toy pack."""

import json
import os
import signal
import threading
from types import SimpleNamespace

import pytest
from PIL import Image

from rollout_trainer import __main__ as command_line
from rollout_trainer import host
from rollout_trainer.__main__ import main
from rollout_trainer.host.graph import validate
from rollout_trainer.host.standalone import host as standalone

SETTINGS, TRAIN, SAVE = "node 1 (ToySettings)", "node 2 (ToyTrain, 'My training')", "node 3 (SaveImage)"
LABELS = {"1": SETTINGS, "2": TRAIN, "3": SAVE}


@pytest.fixture
def cli(tmp_path, toys, monkeypatch, capsys):
    """Run a command on a graph; returns its code, its lines on stderr and stdout, and the output folder."""
    monkeypatch.chdir(tmp_path)

    def run(graph, *arguments, command="run"):
        content = graph if isinstance(graph, bytes) else json.dumps(graph).encode()
        (tmp_path / "graph.json").write_bytes(content)
        out = ["--out", "results"] if command == "run" and "--out" not in arguments else []
        code = main([command, "graph.json", *out, *arguments], nodes=toys)
        captured = capsys.readouterr()
        return code, captured.err.splitlines(), captured.out.splitlines(), tmp_path / "results"

    return run


def refused(cli, graph, *arguments, line):
    """Check that a run is refused with one line, and that nothing was written."""
    code, errors, printed, out = cli(graph, *arguments)
    assert code == 2
    assert printed == []
    assert errors == [f"error: {line}"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["graph.json"]


@pytest.mark.parametrize("command", ["run", "validate"])
def test_a_command_makes_one_catalogue(command, cli, api_graph, monkeypatch):
    made = []
    from_nodes = command_line.from_nodes
    monkeypatch.setattr(command_line, "from_nodes", lambda nodes: made.append(1) or from_nodes(nodes))
    assert cli(api_graph, command=command)[0] == 0
    assert len(made) == 1


def test_a_run_writes_pictures_and_a_report(cli, api_graph):
    code, errors, printed, out = cli(api_graph)
    assert code == 0
    assert errors[0] == "[1/3] Toy Settings"
    assert Image.open(out / "toy" / "run_00001_.png").getpixel((0, 0)) == (127, 127, 127)
    report = json.loads((out / "report.json").read_text())
    assert report["workflow"] == "graph.json"
    assert (report["seed"], report["steps"], report["lora"]) == (7, 2, "toy.safetensors")
    assert report["loss"] == {"total": [1.0, 0.5]}
    assert report["images"] == ["toy/run_00001_.png"]
    assert report["peak_memory_mb"] > 50
    assert report["model_calls"] == {}
    assert not report["cancelled"]
    assert "Report: results/report.json" in printed[-1].replace(str(out.parent) + "/", "")


def test_a_saved_picture_can_be_run_again(cli, saved, api_graph, toys, tmp_path, capsys):
    assert cli(saved("everything.json"))[0] == 0
    picture = tmp_path / "results" / "kept_00001_.png"
    workflow = json.loads(Image.open(picture).info["workflow"])
    assert workflow == saved("everything.json")
    assert main(["validate", str(picture)], nodes=toys) == 0


def test_settings_are_typed_by_their_widgets(cli, api_graph):
    settings = ["ToySettings.rate=1", "1.ema=yes", "1.mode=slow", "My training.seed=99", "2.steps=1"]
    code, _, _, out = cli(api_graph, *(word for text in settings for word in ("--set", text)))
    assert code == 0
    report = json.loads((out / "report.json").read_text())
    assert (report["seed"], report["steps"]) == (99, 1)
    prompt = json.loads(Image.open(out / "toy" / "run_00001_.png").info["prompt"])
    assert prompt["1"]["inputs"] == {"rate": 1.0, "mode": "slow", "ema": True}


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("steps=3", "--set must be NODE.WIDGET=VALUE, got 'steps=3'"),
        ("ToyTran.steps=3", "'ToyTran' must be a node's id, title or class (like ToyTrain?)"),
        (
            "2.stps=3",
            f"'stps' must be a widget of {TRAIN} (like steps?); it has seed, steps, folder",
        ),
        (
            "2.settings=3",
            f"'settings' must be a widget of {TRAIN}; it has seed, steps, folder",
        ),
        ("2.steps=many", "steps must be a whole number, got 'many'"),
        ("2.steps=0", "steps must be between 1 and 100, got '0'"),
        ("1.mode=medium", "mode must be one of slow, fast, got 'medium'"),
        ("1.ema=perhaps", "ema must be true or false, got 'perhaps'"),
    ],
)
def test_wrong_settings_are_refused(cli, api_graph, setting, line):
    prefix = "" if line.startswith("--set must") else f"--set {setting}: "
    refused(cli, api_graph, "--set", setting, line=prefix + line)


def test_a_setting_for_several_nodes_asks_for_the_id(cli, api_graph):
    api_graph["4"] = {"class_type": "ToyTrain", "inputs": dict(api_graph["2"]["inputs"])}
    refused(
        cli,
        api_graph,
        "--set",
        "ToyTrain.steps=3",
        line="--set ToyTrain.steps=3: 'ToyTrain' must name one node, got nodes 2, 4; use the id",
    )


# --- bad input: one clear line, exit code 2, nothing written ----------------------------------------------


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (
            b"not json",
            "workflow must be JSON or a PNG with one, got graph.json (line 1, column 1: Expecting value)",
        ),
        (b" \n", "workflow must not be empty, got graph.json; save or export it again"),
        (b"{}", "workflow must have nodes, got none"),
        (b'{"nodes": [], "links": []}', "workflow must have nodes that run, got none"),
        (b"[1, 2]", "workflow must be a JSON object, got a list in graph.json"),
        (b'{"1": 5}', "node '1' must be an object with class_type and inputs, got 5"),
        (
            b'{"nodes": [{"id": 1}], "links": []}',
            "workflow must be as the front end saves it, got KeyError: 'type'",
        ),
        (
            b'{"nodes": [7]}',
            "workflow must be as the front end saves it, got TypeError: 'int' object is not subscriptable",
        ),
        (b"\x89PNG but no picture", None),
    ],
)
def test_files_that_are_no_workflow(cli, content, line, tmp_path):
    if line is None:
        code, errors, _, _ = cli(content)
        assert (code, len(errors)) == (2, 1)
        assert errors[0].startswith("error: workflow must be a readable PNG, got graph.json")
    else:
        refused(cli, content, line=line)


def test_a_file_that_is_not_there(toys, tmp_path, capsys):
    assert main(["run", str(tmp_path / "none.json"), "--out", str(tmp_path / "out")], nodes=toys) == 2
    assert capsys.readouterr().err.startswith("error: workflow must be a readable file, got")


def test_an_unknown_node(cli, api_graph):
    api_graph["2"]["class_type"] = "ToyTrian"
    refused(
        cli,
        api_graph,
        line="node 2 (ToyTrian, 'My training'): ToyTrian must be a known node (like ToyTrain?); "
        "give --comfyui DIR, an installation that has it, to run nodes of other packs",
    )


def test_a_cycle(cli, api_graph):
    api_graph["1"]["inputs"]["note"] = ["2", 0]
    refused(
        cli,
        api_graph,
        line="graph must not have a cycle, got 1 (ToySettings) -> 2 (ToyTrain) -> 1 (ToySettings); "
        "remove one of these links",
    )


def test_a_cycle_of_reroutes(cli, saved):
    content = saved("everything.json")
    content["links"][0] = [1, 2, 0, 2, 0, "*"]
    refused(cli, content, line="graph must not have a cycle, got one through link 1; remove that link")


@pytest.mark.parametrize(
    ("node", "name", "value", "rule"),
    [
        ("2", "settings", None, "must be linked to an output of type ROLLOUT_OPTIMIZER, got nothing"),
        ("2", "settings", ["9", 0], "must be linked to a node of the graph, got node 9"),
        ("2", "settings", ["1", 3], f"must be linked to one of the 1 outputs of {SETTINGS}, got output 3"),
        ("2", "settings", "text", "must be linked to an output of type ROLLOUT_OPTIMIZER, got 'text'"),
        ("3", "images", ["2", 0], f"must be linked to an output of type IMAGE, got ROLLOUT_RUN from {TRAIN}"),
        ("2", "steps", 0, "must be between 1 and 100, got 0"),
        ("2", "steps", "3", "must be a whole number, got '3'"),
        ("2", "steps", 2.5, "must be a whole number, got 2.5"),
        ("2", "steps", True, "must be a whole number, got True"),
        ("2", "steps", [1, 2, 3], "must be a whole number, got [1, 2, 3]"),
        ("2", "folder", 4, "must be text, got 4"),
        ("2", "folder", "nowhere", "must be a folder with pictures, got 'nowhere'; check the path"),
        ("1", "rate", "fast", "must be a number, got 'fast'"),
        ("1", "mode", "medium", "must be one of slow, fast, got 'medium'"),
        ("1", "ema", 1, "must be true or false, got 1"),
        ("1", "rte", 0.5, "must be an input of the node (like rate?); remove it"),
    ],
)
def test_inputs_that_are_missing_or_wrong(cli, api_graph, node, name, value, rule):
    if value is None:
        del api_graph[node]["inputs"][name]
    else:
        api_graph[node]["inputs"][name] = value
    refused(cli, api_graph, line=f"{LABELS[node]}: {name} {rule}")


def test_a_missing_constant_is_its_default_if_it_has_one(cli, api_graph):
    del api_graph["1"]["inputs"]["mode"]
    assert cli(api_graph, command="validate")[0] == 0
    api_graph["4"] = {"class_type": "PrimitiveInt", "inputs": {}}
    api_graph["2"]["inputs"]["steps"] = ["4", 0]
    refused(cli, api_graph, line="node 4 (PrimitiveInt): value must be given, got nothing")


def test_a_graph_without_outputs(cli, api_graph):
    del api_graph["3"]
    line = "graph must have an output node, got none; add Save Image or another that saves"
    refused(cli, api_graph, line=line)


def test_several_problems_are_all_listed(cli, api_graph):
    api_graph["1"]["inputs"]["rate"] = 2
    api_graph["2"]["inputs"]["steps"] = 0
    code, errors, _, _ = cli(api_graph, "--out", "graph.json", "--set", "nobody.x=1")
    assert code == 2
    assert len(errors) == 4


def test_an_output_folder_that_cannot_be_written(cli, api_graph):
    why = "got graph.json/results (Not a directory); choose another"
    line = f"--out must be a folder that can be written, {why}"
    refused(cli, api_graph, "--out", "graph.json/results", line=line)


def test_too_little_disk(cli, api_graph, monkeypatch):
    monkeypatch.setattr(validate.shutil, "disk_usage", lambda path: SimpleNamespace(free=7 * 2**20))
    line = "--out must have 500 MB of free disk, got 7 MB in results; free some or choose another"
    refused(cli, api_graph, line=line)


def test_a_device_that_is_not_there(cli, api_graph):
    line = "--device must be a device of this machine, got 'abacus'"
    refused(cli, api_graph, "--device", "abacus", line=line)


def test_a_missing_picture(cli, api_graph):
    api_graph["4"] = {"class_type": "LoadImage", "inputs": {"image": "face.png [input]"}}
    api_graph["3"]["inputs"]["images"] = ["4", 0]
    code, errors, _, _ = cli(api_graph)
    assert (code, len(errors)) == (2, 1)
    assert "image must be a readable picture, got" in errors[0]


# --- running -----------------------------------------------------------------------------------------------


def test_what_no_output_needs_is_neither_checked_nor_run(cli, api_graph):
    api_graph["4"] = {"class_type": "ToyBroken", "inputs": {}}
    api_graph["5"] = {"class_type": "ToyTrain", "inputs": {}}
    assert cli(api_graph)[0] == 0


def test_an_error_begins_a_line_of_its_own(cli, api_graph, toys, monkeypatch):
    """A node that fails has left its progress bar in the middle of a line."""

    def fails(**inputs):
        host.current().progress(10).update(3, "loss 1.0")
        raise RuntimeError("steps must be right")

    train = next(node for node in toys if node.__name__ == "ToyTrain")
    monkeypatch.setattr(train, "execute", fails)
    code, errors, _, _ = cli(api_graph)
    assert code == 1
    assert errors[-1] == f"error: {TRAIN}: steps must be right"
    assert "3/10" in errors[-2]


def test_a_node_that_fails_is_named(cli, api_graph):
    api_graph["4"] = {"class_type": "ToyBroken", "inputs": {}}
    api_graph["3"]["inputs"]["images"] = ["4", 0]
    code, errors, _, out = cli(api_graph)
    assert code == 1
    assert errors[-1] == "error: node 4 (ToyBroken): loss must be finite, got nan at step 3; lower the rate"
    assert not out.exists()


def test_async_nodes_and_loaded_pictures(cli, api_graph, tmp_path):
    Image.new("RGBA", (3, 2), (255, 0, 0, 51)).save(tmp_path / "face.png")
    graph = {
        "1": {"class_type": "ToyAsync", "inputs": {}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
        "3": {"class_type": "LoadImage", "inputs": {"image": "face.png"}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "copy"}},
        "5": {"class_type": "PrimitiveInt", "inputs": {"value": 5}},
        "6": {"class_type": "PreviewAny", "inputs": {"source": ["5", 0]}},
    }
    code, _, printed, out = cli(graph)
    assert code == 0
    assert Image.open(out / "copy_00001_.png").getpixel((1, 1)) == (255, 0, 0)
    assert (out / "preview" / "preview_00001_.png").exists()
    assert "node 6 (PreviewAny): 5" in printed


def test_ctrl_c_saves_and_says_where(cli, api_graph, monkeypatch):
    original = standalone._TerminalProgress.update

    def interrupt(self, done, text="", image=None):
        if done == 3:
            os.kill(os.getpid(), signal.SIGINT)
        original(self, done, text, image)

    monkeypatch.setattr(standalone._TerminalProgress, "update", interrupt)
    assert threading.current_thread() is threading.main_thread()
    code, _, printed, out = cli(api_graph, "--set", "2.steps=50")
    assert code == 130
    assert printed[0] == "Cancelled; state saved in state-3"
    assert json.loads((out / "report.json").read_text())["cancelled"]


def test_validate_runs_nothing(cli, api_graph):
    code, errors, printed, out = cli(api_graph, command="validate")
    assert (code, errors) == (0, [])
    assert printed == ["graph.json is valid: 3 nodes"]
    assert not out.exists()


def test_nodes_are_listed_with_their_ranges(toys, capsys):
    assert main(["nodes", "toyset"], nodes=toys) == 0
    assert capsys.readouterr().out.splitlines() == [
        "ToySettings (Toy Settings)",
        "Settings of a toy.",
        "  rate: FLOAT, 0.0..1.0, default 0.5. How fast.",
        '  mode: slow | fast, default "slow"',
        "  ema: BOOLEAN, default true",
        '  note: STRING, default "", optional',
        "  -> settings: ROLLOUT_OPTIMIZER",
    ]
