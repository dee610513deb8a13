"""What the front end is told and may ask, on a stand-in for ComfyUI's server and on a runs folder."""

import json
import os
import sys
import time
import types

import pytest

from rollout_trainer.host.comfyui import panel as events
from rollout_trainer.host.comfyui import panel_files


class Server:
    client_id = "tab"

    def __init__(self, running=()):
        self.sent = []
        self.running = list(running)
        self.prompt_queue = types.SimpleNamespace(get_current_queue_volatile=lambda: (self.running, []))

    def send_sync(self, event, data, sid):
        self.sent.append((event, data, sid))


@pytest.fixture
def server(monkeypatch):
    extra = {"extra_pnginfo": {"workflow": {"id": "w"}}}
    own = Server([(0, "other", {}, {}, []), (1, "p", {}, extra, [], {})])
    module = types.SimpleNamespace(PromptServer=types.SimpleNamespace(instance=own))
    monkeypatch.setitem(sys.modules, "server", module)
    monkeypatch.setattr(events, "_newest", type(events._newest)())
    monkeypatch.setattr(events, "_training", None)
    return own


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(events.time, "monotonic", lambda: now[0])
    return now


def test_facts_are_sent_four_times_a_second_at_most_and_made_only_then(server, clock, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(panel_files, "keep", lambda folder, data: kept.append(clock[0]))
    panel, made = events.Panel("p", "3:8", tmp_path), []

    def facts():
        made.append(clock[0])
        return {"step": len(made)}

    for _ in range(10_000):  # a hundred seconds
        panel.show(facts)
        clock[0] += 0.01
    assert len(made) == len(server.sent) <= 401
    assert len(kept) == 4
    event, data, client = server.sent[-1]
    assert (event, client) == ("rollout_trainer.progress", None)  # every tab with this workflow
    assert data == {"step": len(made), "node": "3:8", "prompt_id": "p", "workflow": "w", "state": "running"}


@pytest.mark.parametrize("state", ["done", "stopped"])
def test_the_last_word_is_always_sent_remembered_and_kept(server, clock, tmp_path, state):
    panel = events.Panel("p", "8", tmp_path)
    panel.show(lambda: {"step": 1})
    panel.end(lambda: {"step": 2}, state)
    assert [data["step"] for _, data, _ in server.sent] == [1, 2]
    assert events.remembered("w")["8"]["state"] == state
    kept = json.loads((tmp_path / "panel.json").read_text())
    assert (kept["step"], kept["state"], kept["workflow"], kept["node"]) == (2, state, "w", "8")
    assert [p.name for p in tmp_path.iterdir()] == ["panel.json"]


def test_a_graph_without_a_workflow_is_told_of_to_whoever_queued_it(server, tmp_path):
    events.Panel("other", "8", tmp_path).show(lambda: {"step": 1})
    assert [client for _, _, client in server.sent] == ["tab"]
    server.client_id = None
    events.Panel("other", "8", tmp_path).show(lambda: {"step": 1})
    assert len(server.sent) == 1


def test_the_nodes_that_were_silent_longest_are_forgotten(server):
    for i in range(events.REMEMBERED + 5):
        events.remember({"workflow": "w", "node": str(i)})
        events.remember({"workflow": "w", "node": "first"})
    assert len(events._newest) == events.REMEMBERED
    assert ("w", "first") in events._newest
    assert ("w", "0") not in events._newest


def test_a_training_that_an_error_ended_does_not_run(server, tmp_path):
    events.Panel("p", "8", tmp_path).show(lambda: {"step": 1, "seconds_left": 9})
    assert events.remembered("w")["8"]["state"] == "running"
    server.running.clear()
    assert events.remembered("w")["8"]["state"] == "stopped"
    assert events.remembered("w")["8"]["seconds_left"] is None
    with pytest.raises(LookupError, match="not executed now"):
        events.ask("8", "p", "save")


def test_without_a_server_or_a_known_workflow_nothing_breaks(server, monkeypatch, tmp_path):
    assert events.workflow_of(server, "other") == events.workflow_of(server, "unknown") == ""
    monkeypatch.setitem(sys.modules, "server", types.SimpleNamespace(PromptServer=object))
    panel = events.Panel("p", "8", tmp_path)
    panel.show(dict)
    panel.end(dict, "done")
    assert not events._newest
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_a_line_in_the_log(server, tmp_path, caplog):
    events.Panel("p", "8", tmp_path / "gone").end(lambda: {"step": 1}, "done")
    assert [r.getMessage().partition(":")[0] for r in caplog.records] == ["the facts of gone are not kept"]
    assert events.remembered("w")["8"]["step"] == 1
    assert not (tmp_path / "gone").exists()


# --- what is asked ------------------------------------------------------------------------------


def test_only_the_training_that_runs_can_be_asked_and_each_question_counts_once(server, tmp_path):
    with pytest.raises(LookupError):
        events.ask("8", "p", "save")
    first, panel = events.Panel("p", "7", tmp_path), events.Panel("p", "8", tmp_path)
    for node, prompt_id in (("7", "p"), ("8", "other"), ("3:8", "p")):
        with pytest.raises(LookupError, match="does not train now"):
            events.ask(node, prompt_id, "save")
    assert panel.asked() == frozenset()
    for what in ("save", "preview", "save"):
        events.ask("8", "p", what)
    assert panel.asked() == {"save", "preview"}
    assert panel.asked() == first.asked() == frozenset()
    panel.end(lambda: {}, "done")
    with pytest.raises(LookupError):
        events.ask("8", "p", "save")


# --- what is kept -------------------------------------------------------------------------------


def put(runs, name, changed, **data):
    folder = runs / name
    folder.mkdir(parents=True)
    path = folder / "panel.json"
    path.write_text(json.dumps({"workflow": "w", "node": "8", "state": "done", **data}))
    os.utime(path, ns=(changed, changed))
    return path


def test_the_newest_facts_of_each_node_are_found_and_what_ran_has_stopped(tmp_path):
    put(tmp_path, "a-0001", 100, step=1)
    newest = put(tmp_path, "a-0002", 300, step=2, state="running", seconds_left=5)
    put(tmp_path, "a-0003", 200, step=3)
    put(tmp_path, "b-0001", 100, step=4, node="3:9")
    put(tmp_path, "c-0001", 900, step=5, workflow="other")
    put(tmp_path, "d-0001", 900).write_text('{"workflow": "w"')  # cut off
    (tmp_path / "no-run").mkdir()
    (tmp_path / "file").write_text("")
    kept = panel_files.Kept()
    found = kept.of(tmp_path, "w")
    assert {node: (data["step"], data["state"]) for node, data in found.items()} == {
        "8": (2, "stopped"),
        "3:9": (4, "done"),
    }
    assert found["8"]["seconds_left"] is None
    newest.unlink()
    assert kept.of(tmp_path, "w")["8"]["step"] == 3
    assert kept.of(tmp_path / "nowhere", "w") == {}


def test_a_thousand_runs_cost_no_second_and_are_read_once(tmp_path, monkeypatch):
    curve = {name: [0.12345] * 300 for name in ("step", "base", "fc", "adr", "validation")}
    for i in range(1000):
        put(tmp_path, f"a-{i:04d}", 100 + i, step=i, curve=curve)
    kept, reads = panel_files.Kept(), []
    read = panel_files.read
    monkeypatch.setattr(panel_files, "read", lambda path: reads.append(path) or read(path))
    times = []
    for _ in range(2):
        begin = time.perf_counter()
        assert kept.of(tmp_path, "w")["8"]["step"] == 999
        times.append(time.perf_counter() - begin)
    print(f"1000 runs: {times[0]:.3f} s, again {times[1]:.3f} s")
    assert len(reads) == 1000 + 1 + 1
    assert times[1] < 0.5


# --- films --------------------------------------------------------------------------------------


def put_film(run, step, frames=2, told=True):
    folder = run / "film" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    for i in range(frames):
        (folder / f"{i:02d}.jpg").write_bytes(b"jpeg")
    if told:
        numbers = {name: [0.5] * frames for name in ("sigmas", "drift", "floor")}
        (folder / "film.json").write_text(json.dumps({"step": step, "frames": frames, **numbers}))
    return folder


def test_whole_films_are_told_of_in_order(tmp_path):
    for step in (100, 0, 50):
        put_film(tmp_path, step)
    put_film(tmp_path, 150, told=False)
    (put_film(tmp_path, 200) / "film.json").write_text("{")
    told = panel_files.films(tmp_path)
    assert [film["step"] for film in told] == [0, 50, 100]
    assert all(film["version"] > 0 for film in told)
    assert panel_files.films(tmp_path / "nowhere") == []


def test_of_many_films_some_are_told_of_and_the_last(tmp_path):
    for step in range(250):
        put_film(tmp_path, step, frames=0)
    steps = [film["step"] for film in panel_files.films(tmp_path)]
    assert len(steps) <= panel_files.FILMS
    assert steps[-1] == 249


def test_only_frames_of_whole_films_inside_the_run_are_found(tmp_path):
    run = tmp_path / "run"
    folder = put_film(run, 7)
    assert panel_files.frame_path(run, 7, 1) == folder / "01.jpg"
    put_film(run, 8, told=False)
    outside = put_film(tmp_path / "elsewhere", 9)
    (run / "film" / "step-00000009").symlink_to(outside)
    (folder / "02.jpg").symlink_to(outside / "01.jpg")
    for step, frame in ((7, 3), (8, 0), (9, 0), (7, 2), (10**11, 0)):
        with pytest.raises(LookupError):
            panel_files.frame_path(run, step, frame)
