"""What the front end is told and may ask, on a stand-in for ComfyUI's server."""

import json
import sys
import types

import pytest

from rollout_trainer.host.comfyui import panel as events
from rollout_trainer.training.runs.folder import RunFolder


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


def test_facts_are_sent_four_times_a_second_at_most_and_made_only_then(server, clock):
    kept = []
    run = types.SimpleNamespace(keep_panel=lambda facts: kept.append(clock[0]))
    panel, made = events.Panel("p", "3:8", run), []

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


@pytest.mark.parametrize("state", ["done", "stopped", "failed"])
def test_the_last_word_is_always_sent_remembered_and_kept(server, clock, tmp_path, state):
    panel = events.Panel("p", "8", RunFolder(tmp_path))
    panel.show(lambda: {"step": 1})
    panel.end(lambda: {"step": 2}, state, "why" if state == "failed" else "")
    assert [data["step"] for _, data, _ in server.sent] == [1, 2]
    assert events.remembered("w")["8"]["state"] == state
    kept = json.loads((tmp_path / "panel.json").read_text())
    assert (kept["step"], kept["state"], kept["workflow"], kept["node"]) == (2, state, "w", "8")
    assert kept.get("error") == ("why" if state == "failed" else None)
    assert [p.name for p in tmp_path.iterdir()] == ["panel.json"]


def test_a_graph_without_a_workflow_is_told_of_to_whoever_queued_it(server, tmp_path):
    events.Panel("other", "8", RunFolder(tmp_path)).show(lambda: {"step": 1})
    assert [client for _, _, client in server.sent] == ["tab"]
    server.client_id = None
    events.Panel("other", "8", RunFolder(tmp_path)).show(lambda: {"step": 1})
    assert len(server.sent) == 1


def test_the_nodes_that_were_silent_longest_are_forgotten(server):
    for i in range(events.REMEMBERED + 5):
        events.remember({"workflow": "w", "node": str(i)})
        events.remember({"workflow": "w", "node": "first"})
    assert len(events._newest) == events.REMEMBERED
    assert ("w", "first") in events._newest
    assert ("w", "0") not in events._newest


def test_a_training_that_an_error_ended_does_not_run(server, tmp_path):
    events.Panel("p", "8", RunFolder(tmp_path)).show(lambda: {"step": 1, "seconds_left": 9})
    assert events.remembered("w")["8"]["state"] == "running"
    server.running.clear()
    assert events.remembered("w")["8"]["state"] == "stopped"
    assert events.remembered("w")["8"]["seconds_left"] is None
    with pytest.raises(LookupError, match="does not run now"):
        events.ask("8", "p", "save")


def test_without_a_server_or_a_known_workflow_nothing_breaks(server, monkeypatch, tmp_path):
    assert events.workflow_of(server, "other") == events.workflow_of(server, "unknown") == ""
    monkeypatch.setitem(sys.modules, "server", types.SimpleNamespace(PromptServer=object))
    panel = events.Panel("p", "8", RunFolder(tmp_path))
    panel.show(dict)
    panel.end(dict, "done")
    assert not events._newest
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_a_line_in_the_log(server, tmp_path, caplog):
    events.Panel("p", "8", RunFolder(tmp_path / "gone")).end(lambda: {"step": 1}, "done")
    assert [r.getMessage().partition(":")[0] for r in caplog.records] == ["what the panel shows is not kept"]
    assert events.remembered("w")["8"]["step"] == 1
    assert not (tmp_path / "gone").exists()


# --- what is asked ------------------------------------------------------------------------------


def test_only_the_training_that_runs_can_be_asked_and_each_question_counts_once(server, tmp_path):
    with pytest.raises(LookupError):
        events.ask("8", "p", "save")
    first, panel = events.Panel("p", "7", RunFolder(tmp_path)), events.Panel("p", "8", RunFolder(tmp_path))
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
