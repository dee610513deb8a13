"""What the front end is told, on a stand-in for ComfyUI's server."""

import sys
import types

import pytest

from rollout_trainer.host import events


class Server:
    client_id = "tab"

    def __init__(self, running=()):
        self.sent = []
        self.prompt_queue = types.SimpleNamespace(get_current_queue_volatile=lambda: (list(running), []))

    def send_sync(self, event, data, sid):
        self.sent.append((event, data, sid))


@pytest.fixture
def server(monkeypatch):
    extra = {"extra_pnginfo": {"workflow": {"id": "w"}}}
    own = Server([(0, "other", {}, {}, []), (1, "p", {}, extra, [], {})])
    module = types.SimpleNamespace(PromptServer=types.SimpleNamespace(instance=own))
    monkeypatch.setitem(sys.modules, "server", module)
    monkeypatch.setattr(events, "_newest", type(events._newest)())
    return own


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(events.time, "monotonic", lambda: now[0])
    return now


def test_facts_are_sent_four_times_a_second_at_most_and_made_only_then(server, clock):
    panel, made = events.Panel("p", "3:8"), []

    def facts():
        made.append(clock[0])
        return {"step": len(made)}

    for _ in range(1000):  # ten seconds
        panel.show(facts, done=False, stopped=False)
        clock[0] += 0.01
    assert len(made) == len(server.sent) <= 41
    event, data, client = server.sent[-1]
    assert (event, client) == ("rollout_trainer.progress", "tab")
    assert data == {"step": len(made), "node": "3:8", "prompt_id": "p", "workflow": "w", "state": "running"}


@pytest.mark.parametrize(("done", "stopped", "state"), [(True, False, "done"), (False, True, "stopped")])
def test_the_last_word_is_always_sent_and_remembered(server, clock, done, stopped, state):
    panel = events.Panel("p", "8")
    panel.show(lambda: {"step": 1}, done=False, stopped=False)
    panel.show(lambda: {"step": 2}, done=done, stopped=stopped)
    assert [data["step"] for _, data, _ in server.sent] == [1, 2]
    assert events._newest["w", "8"]["state"] == state


def test_the_nodes_that_were_silent_longest_are_forgotten(server):
    for i in range(events.REMEMBERED + 5):
        events.remember({"workflow": "w", "node": str(i)})
        events.remember({"workflow": "w", "node": "first"})
    assert len(events._newest) == events.REMEMBERED
    assert ("w", "first") in events._newest
    assert ("w", "0") not in events._newest


def test_without_a_server_or_a_known_workflow_nothing_breaks(server, monkeypatch):
    assert events.workflow_of(server, "other") == events.workflow_of(server, "unknown") == ""
    monkeypatch.setitem(sys.modules, "server", types.SimpleNamespace(PromptServer=object))
    events.Panel("p", "8").show(dict, done=True, stopped=False)
    events.serve()
    assert not events._newest
