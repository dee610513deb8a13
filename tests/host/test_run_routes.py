"""The run browser's routes on a real ComfyUI, with runs that it trained: in every spelling, nothing else gets in."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hostile_names import HEADER, OUTSIDE, RUNS, ask
from prompt_builder import PromptBuilder

EVIL = "<img src=x onerror=alert(1)>"


def add_training(graph, name, **widgets):
    """A training of the demo model; the run's folder gets a number behind `name`."""
    model = graph.add("RolloutLoadDiffusers")
    data = graph.add("RolloutEncodeDataset", model=model, dataset=graph.add("RolloutDatasetFromFolder"))
    run = graph.add("RolloutTrainLoRA", model=model, data=data, run_name=name, batch_size=1, **widgets)
    graph.add("PreviewAny", source=run)
    return run


@pytest.fixture(scope="module")
def root(comfyui):
    """The host's runs folder with some runs in it, and a link; beside it is a run that is nobody's business."""
    for name in ("routes", EVIL):
        graph = PromptBuilder(comfyui.object_info())
        add_training(graph, name, steps=3)
        comfyui.queue(graph.prompt)
    root = comfyui.base / "output" / "rollout_trainer" / "runs"
    secret = root.parent / "secret"
    secret.mkdir()
    (secret / "config.json").write_text('{"version": 1}')
    (root / "link").symlink_to(secret)
    return root


@pytest.mark.parametrize("prefix", ["", "/api"])
def test_the_list_and_a_run_say_what_was_trained(prefix, comfyui, root):
    status, headers, listed = ask(comfyui.port, "GET", prefix + RUNS)
    assert (status, headers.get_content_type()) == (200, "application/json")
    runs = {run["name"]: run for run in listed["runs"]}
    assert {"routes-0001", f"{EVIL}-0001"} <= runs.keys()
    assert "link" in listed["skipped"]
    own = runs["routes-0001"]
    assert (own["step"], own["planned"], own["model"], own["training"]) == (3, 3, "model", False)
    assert own["loss"] > 0
    status, _, details = ask(comfyui.port, "GET", f"{prefix}{RUNS}/{quote(EVIL)}-0001")
    assert (status, details["name"], details["steps"]) == (200, f"{EVIL}-0001", [0, 3])
    assert details["folder"] == f"rollout_trainer/runs/{EVIL}-0001"
    assert details["curve"]["step"] == [1, 2, 3]
    assert details["settings"]["batch_size"] == 1


@pytest.mark.parametrize(("method", "tail"), [("GET", ""), ("GET", "/thumbnail"), ("DELETE", "")])
def test_nothing_outside_is_answered_or_deleted(method, tail, comfyui, root):
    before = sorted(root.parent.rglob("*"))
    for name in OUTSIDE:
        status, _, _ = ask(comfyui.port, method, f"{RUNS}/{name}{tail}", HEADER)
        assert status in (400, 403, 404, 405), name
    assert sorted(root.parent.rglob("*")) == before


@pytest.mark.parametrize("tail", ["/film/99999999999/99999999999", "/samples/1/99999", "/x", ""])
def test_a_name_too_long_for_a_disk_is_not_found(tail, comfyui):
    """Where no route of ours took the address, the server's own files did, with error 500 and a traceback."""
    assert ask(comfyui.port, "GET", f"{RUNS}/{'a' * 5000}{tail}")[0] == 404


def test_other_sites_delete_nothing(comfyui, root):
    path = f"{RUNS}/routes-0001"
    own = f"http://127.0.0.1:{comfyui.port}"
    assert ask(comfyui.port, "DELETE", path, HEADER | {"Origin": "https://evil.example"})[0] == 403
    assert ask(comfyui.port, "DELETE", path, {"Origin": own})[0] == 403
    wanted = {"Origin": "https://evil.example", "Access-Control-Request-Method": "DELETE"}
    _, headers, _ = ask(comfyui.port, "OPTIONS", path, wanted)
    assert "Access-Control-Allow-Origin" not in headers
    assert (root / "routes-0001" / "config.json").is_file()


def test_a_run_in_training_stays_and_can_be_deleted_when_it_has_stopped(comfyui, root):
    graph = PromptBuilder(comfyui.object_info())
    run = add_training(graph, "busy", steps=5000)
    path = f"{RUNS}/busy-0001"
    with comfyui.events() as events:
        prompt_id = comfyui.submit(graph.prompt)
        assert events.wait_for(
            lambda seen: any(d["node"] == run[0] and d["value"] >= 3 for d in seen.of_type("progress")), 120
        )
        listed = ask(comfyui.port, "GET", RUNS)[2]["runs"]
        assert [one["name"] for one in listed if one["training"]] == ["busy-0001"]
        status, _, answer = ask(comfyui.port, "DELETE", path, HEADER)
        assert status == 409
        assert "stop it first" in answer["error"]
        comfyui.interrupt()
        comfyui.wait(prompt_id)
    assert ask(comfyui.port, "DELETE", path, HEADER)[0] == 200
    assert not (root / "busy-0001").exists()
    assert not list(root.glob(".*"))
    assert ask(comfyui.port, "GET", path)[0] == 404
