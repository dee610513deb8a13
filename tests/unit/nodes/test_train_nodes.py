"""What a training node tells the host: progress with pictures, what it is asked for, a last word however it ends."""

import json

import pytest
import torch

from rollout_trainer.host.standalone.host import StandaloneHost, installed
from rollout_trainer.nodes.train import check_launch, train_watched
from rollout_trainer.training.objective.config import RolloutConfig
from rollout_trainer.training.runs.folder import RunFolder
from rollout_trainer.training.runs.run import resuming, start, train


class Stop(BaseException):
    """As the host's `Cancelled`."""


class Bar:
    """A panel that asks, stops and listens."""

    def __init__(self, asks=(), error=None):
        self.asks, self.error = dict(asks), error
        self.told, self.pictures, self.last = [], {}, None

    def update(self, done, text="", image=None, facts=None):
        if facts is not None:
            self.told.append(facts())
        if image is not None:
            self.pictures[done] = image.size
        if self.error is not None and done == 3:
            raise self.error

    def asked(self):
        return frozenset(self.asks.pop(len(self.told) + 1, ()))

    def end(self, facts, state, error=""):
        self.last, self.failure = (state, facts()), error


class Host(StandaloneHost):
    """Hands out that bar."""

    def progress(self, total, run=None):
        self.run = run
        return self.bar


@pytest.fixture
def watched(make_data, make_config, toy_source, tmp_path):
    def train(bar, steps=5, **changes):
        host = Host(tmp_path)
        host.bar = bar
        run = start(tmp_path / "runs", "t", toy_source, make_data(), make_config(**changes))
        with installed(host):
            try:
                train_watched(resuming(run), steps)
            finally:
                assert host.run == run.folder
                json.dumps(bar.told, allow_nan=False)
        return run

    return train


def test_what_a_training_costs_stays_in_its_panel(watched):
    bar = Bar()
    watched(bar)
    assert [facts["told"] for facts in bar.told] == [[]] * 5
    bar = Bar()
    watched(bar, rollout=RolloutConfig(max_step_offset=2, probability=1.0))
    cost = bar.told[0]["told"]
    assert len(cost) == 1
    assert "extra model calls per sample" in cost[0]
    assert all(facts["told"] == cost for facts in (*bar.told, bar.last[1]))


def test_what_is_asked_for_is_done_and_told(watched):
    bar = Bar({2: {"save"}, 4: {"preview"}})
    run = watched(bar)
    saved = [facts["saved"] for facts in bar.told]
    assert saved[0] == 0
    assert saved == sorted(saved)
    assert set(saved) <= {0, 2}  # 2 is told once the disk has it
    assert [facts["film"] for facts in bar.told] == [[], [], [], [4], [4]]
    assert run.folder.film_steps() == [4]
    assert bar.pictures == {4: (18, 6)}
    state, facts = bar.last
    assert (state, facts["step"], facts["saved"]) == ("done", 5, 5)
    assert run.folder.steps() == [0, 2, 5]


def test_films_at_the_widgets_steps_are_shown_with_the_progress(watched):
    bar = Bar()
    watched(bar, preview_every=2)
    assert list(bar.pictures) == [1, 2, 4]  # the one of the start comes with the first step
    assert bar.last[1]["film"] == [0, 2, 4]


ENDINGS = [(Stop(), "stopped", ""), (RuntimeError("out of memory"), "failed", "out of memory")]


@pytest.mark.parametrize(("error", "ending", "failure"), ENDINGS, ids=["stopped", "failed"])
def test_the_last_word_comes_after_the_state_is_saved(error, ending, failure, watched):
    bar = Bar(error=error)
    with pytest.raises(type(error)):
        watched(bar)
    state, facts = bar.last
    assert (state, facts["step"], facts["saved"]) == (ending, 3, 3)
    assert bar.failure == failure


def test_a_training_that_is_asked_to_finish_ends_there_and_the_graph_goes_on_with_its_state(
    watched, make_data, make_config, toy_source, tmp_path
):
    bar = Bar({3: {"finish"}})
    run = watched(bar)
    state, facts = bar.last
    assert (state, facts["step"], facts["last_step"], facts["saved"]) == ("done", 3, 5, 3)
    assert run.folder.steps() == [0, 3]
    whole = train(start(tmp_path / "runs", "t", toy_source, make_data(), make_config()), 3)
    left, right = RunFolder(run.folder.path).load(3), whole.state
    for name, tensor in right.tensors.items():
        assert torch.allclose(left.tensors[name], tensor, rtol=0, atol=0, equal_nan=True), name


def test_a_comfyui_that_a_launcher_started_itself_is_refused(tmp_path, monkeypatch):
    host = Host(tmp_path)
    host.name = "comfyui"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("ROLLOUT_TRAINER_REPORT", raising=False)
    with (
        installed(host),
        pytest.raises(RuntimeError, match="ComfyUI must not be started by accelerate launch"),
    ):
        check_launch()
    monkeypatch.setenv("ROLLOUT_TRAINER_REPORT", str(tmp_path / "report.json"))
    with installed(host):
        check_launch()
