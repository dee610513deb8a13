"""The best moment: found, kept, handed on; a run that was stopped on the way finds the same one."""

import math
import random
import time
from dataclasses import replace

import pytest
import torch
from everything import EVERYTHING, same

from rollout_trainer.training.data.holdout import hold_out
from rollout_trainer.training.data.mixture import Added, mixed
from rollout_trainer.training.runs.live import Live
from rollout_trainer.training.runs.run import reopen, resuming, start, starting, train, validate
from rollout_trainer.training.trainer.best import Best
from rollout_trainer.training.trainer.optim import OptimizerConfig
from rollout_trainer.training.trainer.trainer import Trainer

KEPT = {"hold_out": 0.25, "validate_every": 2, "patience": 3}


def names_of(data):
    return {name for bucket in data.buckets for name in bucket.names}


# --- who is held out ----------------------------------------------------------------------------


def test_the_names_say_who_is_held_out(make_data):
    """In both sizes the same pictures; captions' variants and masks go with their samples."""
    data = make_data(12, sizes=(6, 4), masked=True, variants=3)
    taught, held = hold_out(data, 0.25)
    assert names_of(taught) | names_of(held) == names_of(data)
    assert not names_of(taught) & names_of(held)
    assert [len(bucket) for bucket in held.buckets] == [3, 3]
    assert held.buckets[0].names == held.buckets[1].names
    for whole, part in zip(data.buckets, held.buckets, strict=True):
        rows = [whole.names.index(name) for name in part.names]
        assert torch.equal(part.latents, whole.latents[rows])
        assert torch.equal(part.masks, whole.masks[rows])
        texts = whole.cond["context"].view(12, 3, 3, 6)[rows].flatten(0, 1)
        assert torch.equal(part.cond["context"], texts)
        assert part.captions == tuple(whole.captions[i] for i in rows)
    assert taught.fingerprint == data.fingerprint


def test_another_picture_moves_hardly_any_other(make_data):
    before, after = (names_of(hold_out(make_data(n), 0.2)[1]) for n in (100, 101))
    assert len(before) == len(after) == 20
    assert len(before & after) >= 19
    backwards = make_data(100)
    order = torch.arange(99, -1, -1)
    backwards = replace(backwards, buckets=(backwards.buckets[0].part(order),))
    assert names_of(hold_out(backwards, 0.2)[1]) == before


@pytest.mark.parametrize(("share", "held"), [(0.01, 1), (0.5, 6), (0.9, 11), (0.99, 11)])
def test_something_is_left_on_both_sides(share, held, make_data):
    taught, apart = hold_out(make_data(12), share)
    assert (len(taught), len(apart)) == (12 - held, held)


def test_every_part_of_a_mixed_dataset_gives_its_share(toy_source, make_data, make_config, tmp_path):
    data = mixed(make_data(12, sizes=(6, 4)), make_data(20), Added(0.25))
    taught, held = hold_out(data, 0.25)
    assert [len(bucket) for bucket in taught.buckets] == [9, 9, 15]
    assert [len(bucket) for bucket in held.buckets] == [3, 3, 5]
    assert [(part.buckets, part.share) for part in taught.parts] == [(2, 0.75), (1, 0.25)]
    config = make_config(hold_out=0.25, validate_every=2, batch_size=2)
    run = train(start(tmp_path, "t", toy_source, data, config), 4)
    assert run.history.columns["validation"][-1] > 0


def test_one_picture_cannot_be_parted(make_data):
    with pytest.raises(ValueError, match="hold_out must be 0 for data of fewer than two pictures"):
        hold_out(make_data(1), 0.1)


def test_what_is_held_out_is_never_trained_on(toy_source, make_data, make_config, tmp_path):
    data = make_data(12)
    with starting(tmp_path, "t", toy_source, data, make_config(hold_out=0.25, validate_every=50)) as stage:
        held = stage.run.validation
        assert names_of(stage.run.data) == names_of(data) - names_of(held)
        assert stage.trainer.order.dataset is stage.run.data
        run = stage.train(3)
    again = reopen(run.folder.path, toy_source, make_data(12))
    assert names_of(again.validation) == names_of(held)
    assert names_of(again.data) == names_of(stage.run.data)


# --- the best moment ----------------------------------------------------------------------------


@pytest.fixture
def told_losses(monkeypatch):
    """Let the validations give these losses, by the steps done."""

    def tell(losses):
        monkeypatch.setattr(Trainer, "validate", lambda trainer, data: losses[trainer.done])

    return tell


CURVE = {2: 5.0, 4: 3.0, 6: 4.0, 8: 2.0, 10: 2.5, 12: math.nan, 14: 2.0, 16: 1.0}


def test_it_is_found_and_the_run_ends_when_it_is_long_past(
    told_losses, make_source, make_data, make_config, tmp_path
):
    """Least at step 8; then worse, not a number, no better: three measurements, so nothing is trained after 14."""
    told_losses(CURVE)
    config = make_config(**KEPT)
    told = []
    with starting(tmp_path, "t", make_source("flow"), make_data(), config) as stage:
        best = stage.train(40, told.append)
        assert (stage.run.step, stage.trainer.done) == (14, 14)
        assert stage.train(5) == best  # it has ended: more steps train nothing
    assert best.step == 8
    assert [report.best.step if report.best else None for report in told] == [
        None,
        2,
        2,
        4,
        4,
        4,
        4,
        *[8] * 7,
    ]
    assert best.state.values["best"] == {"step": 8, "loss": 2.0, "waited": 0}
    plain = make_config(hold_out=0.25, validate_every=2)
    until = train(start(tmp_path, "p", make_source("flow"), make_data(), plain), 8)
    assert all(torch.equal(best.adapter.tensors[k], until.adapter.tensors[k]) for k in until.adapter.tensors)


def test_at_the_planned_end_the_best_moment_is_handed_on_as_well(
    told_losses, toy_source, make_data, make_config, tmp_path
):
    """The last step is measured even if it is not due."""
    told_losses({2: 2.0, 4: 1.0, 6: 3.0, 7: 4.0})
    run = train(start(tmp_path, "t", toy_source, make_data(), make_config(**KEPT, steps=7)), 7)
    assert run.step == 4
    told_losses({2: 2.0, 4: 1.0, 6: 3.0, 7: 0.5})
    run = train(start(tmp_path, "t", toy_source, make_data(), make_config(**KEPT, steps=7)), 7)
    assert run.step == 7


def test_finish_now_hands_it_on(told_losses, toy_source, make_data, make_config, tmp_path):
    told_losses(CURVE)
    run = start(tmp_path, "t", toy_source, make_data(), make_config(**KEPT))
    asks = iter([(), (), (), (), (), (), ("finish",)])
    assert train(run, 40, asked=lambda: next(asks)).step == 4
    assert run.folder.steps()[-1] == 7


def test_a_stage_before_the_planned_end_hands_on_what_comes_last(
    told_losses, toy_source, make_data, make_config, tmp_path
):
    told_losses(CURVE)
    config = make_config(**KEPT)
    stages = start(tmp_path, "t", toy_source, make_data(), config)
    steps = [(stages := train(stages, 6)).step for _ in range(3)]
    assert steps == [6, 12, 8]
    whole = train(start(tmp_path, "w", toy_source, make_data(), config), 40)
    assert same(whole.state, stages.state)


def test_without_a_finite_loss_there_is_no_best_moment(
    told_losses, toy_source, make_data, make_config, tmp_path
):
    told_losses(dict.fromkeys(range(30), math.nan))
    run = train(start(tmp_path, "t", toy_source, make_data(), make_config(**KEPT)), 20)
    assert run.step == 6  # three measurements that came to nothing
    assert run.state.values["best"] == {"step": 0, "loss": None, "waited": 3}


def test_it_is_the_least_loss_of_the_weights_that_are_handed_on(
    make_source, make_data, make_config, tmp_path
):
    """With real losses, and with the moving average: what is measured is what is handed on."""
    every = {"validate_every": 1, "hold_out": 0.5, "ema_decay": 0.9, "batch_size": 2}
    every |= {"optimizer": OptimizerConfig(lr=0.1)}  # memorises four pictures of noise in no time
    whole = train(start(tmp_path, "w", make_source("flow"), make_data(8), make_config(**every)), 60)
    curve = whole.history.columns["validation"]
    config = make_config(**every, patience=4, steps=60)
    run = train(start(tmp_path, "t", make_source("flow"), make_data(8), config), 60)
    best, end = expected(curve, 4)
    assert 1 < best < end < 30
    assert curve[-1] > 1.3 * curve[best - 1]
    assert (run.step, max(run.folder.steps())) == (best, end)
    assert validate(run, run.validation) == curve[best - 1] == run.state.values["best"]["loss"]
    assert any(not torch.equal(t, run.state.group("adapter")[k]) for k, t in run.adapter.tensors.items())


def expected(curve, patience):
    """Best and last step of a run that measures this after every step."""
    best = 0
    for i, loss in enumerate(curve):
        if loss < curve[best]:
            best = i
        if i - best == patience:
            return best + 1, i + 1
    return best + 1, len(curve)


# --- its state on the disk ----------------------------------------------------------------------


def test_a_run_that_was_stopped_ends_at_the_same_moment(
    told_losses, make_source, make_data, make_config, tmp_path
):
    """Everything on; the counter of the patience and the best loss lie in the state."""
    told_losses(CURVE)
    config, data = make_config(**EVERYTHING | KEPT), make_data()
    whole = train(start(tmp_path, "w", make_source("flow"), data, config), 40)
    last = whole.folder.steps()[-1]
    for stop in random.Random(3).sample(range(1, 14), 6):
        first = train(start(tmp_path, "t", make_source("flow"), data, config), stop)
        rest = train(reopen(first.folder.path, make_source("flow"), data), 40 - stop)
        assert (rest.step, rest.folder.steps()[-1]) == (whole.step, last) == (8, 14)
        assert same(whole.state, rest.state)
        assert same(whole.folder.load(last), rest.folder.load(last))
        assert whole.folder.load(last).values["best"] == rest.folder.load(last).values["best"]
    at_the_end = reopen(rest.folder.path, make_source("flow"), data)
    assert at_the_end.step == 14
    assert train(at_the_end, 10).step == 8


class Stop(BaseException):
    """As a host's cancel."""


def test_the_best_state_outlives_newer_ones(told_losses, make_source, make_data, make_config, tmp_path):
    """Neither `keep` nor a stop takes it, as long as a state that stays says that it is the best."""
    told_losses(CURVE)
    config = make_config(**KEPT | {"patience": 9}, save_every=1, keep=1)

    def watch(report):
        if report.step == 7:
            raise Stop

    run = start(tmp_path, "t", make_source("flow"), make_data(), config)
    with pytest.raises(Stop):
        train(run, 15, watch)
    assert run.folder.steps() == [0, 4, 7]
    run = train(reopen(run.folder.path, make_source("flow"), make_data()), 8)
    assert run.step == 15
    assert run.folder.steps() == [0, 4, 7, 8, 14, 15]


def test_a_best_state_that_is_gone_is_said_and_the_last_one_handed_on(
    told_losses, toy_source, make_data, make_config, tmp_path, caplog
):
    told_losses({2: 1.0, 4: 2.0, 6: 3.0})
    with starting(tmp_path, "t", toy_source, make_data(), make_config(**KEPT, steps=6)) as stage:

        def watch(report):
            if report.step == 5:
                deadline = time.monotonic() + 60
                while not (best := stage.run.folder.state_path(2)).exists():  # it is written beside the steps
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                best.unlink()

        run = stage.train(6, watch)
    assert run.step == 6
    assert "step 2 had the least validation loss, but its state is gone" in caplog.text


def test_off_writes_nothing_of_it(toy_source, make_data, make_config, tmp_path):
    run = train(start(tmp_path, "t", toy_source, make_data(), make_config()), 3)
    assert "best" not in run.state.values
    assert run.validation is None


# --- contradictions, and what is shown ----------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({"patience": 3, "validate_every": 2}, False, "patience must be 0 without validation data, got 3"),
        (
            {"hold_out": 0.2, "validate_every": 2},
            True,
            "hold_out must be 0 with other pictures at validation",
        ),
        ({"hold_out": 0.2}, False, "hold_out must be 0 while validate_every is 0, got 0.2"),
        ({"patience": 2}, True, "patience must be 0 while validate_every is 0, got 2"),
    ],
)
def test_settings_that_contradict_each_other(
    changes, given, message, toy_source, make_data, make_config, tmp_path
):
    with pytest.raises(ValueError, match=message):
        start(tmp_path, "t", toy_source, make_data(), make_config(**changes), make_data(4) if given else None)


def test_a_run_that_needs_its_validation_pictures_asks_for_them(toy_source, make_data, make_config, tmp_path):
    config = make_config(validate_every=2, patience=3)
    run = start(tmp_path, "t", toy_source, make_data(), config, make_data(4))
    with (
        pytest.raises(ValueError, match="validation must be connected to go on with t-0001"),
        resuming(reopen(run.folder.path, toy_source, make_data())),
    ):
        pass
    again = reopen(run.folder.path, toy_source, make_data(), validation=make_data(4))
    assert train(again, 4).history.columns["validation"][-1] > 0


def test_the_panel_is_told_where_it_is(told_losses, toy_source, make_data, make_config, tmp_path):
    told_losses(CURVE)
    run = start(tmp_path, "t", toy_source, make_data(), make_config(**KEPT))
    live = Live(run, 40)
    assert live.facts()["best"] is None
    train(run, 40, live.add)
    assert live.facts()["best"] == {"step": 8, "loss": 2.0}


def test_the_node_hands_it_on_and_says_so(told_losses, toy_source, make_data, tmp_path):
    from rollout_trainer.host.standalone.host import StandaloneHost, installed
    from rollout_trainer.nodes.train import RolloutTrainLoRA
    from rollout_trainer.training.models.source import LoadedModel

    told_losses(CURVE)
    with installed(StandaloneHost(tmp_path, quiet=True)) as host:
        run, _, text = RolloutTrainLoRA.execute(
            model=LoadedModel(toy_source), data=make_data(), steps=40, run_name="t", **KEPT
        ).args
    assert run.step == 8
    assert "the best moment: least validation loss, 2.0000, of 14 steps trained" in text
    assert host.sections["best"] == {"step": 8, "loss": 2.0, "waited": 3, "trained": 14}


def test_a_best_moment_is_written_and_read_back():
    for best in (Best(), Best(8, 2.0, 3), Best(0, math.inf, 2)):
        assert Best.from_plain(best.plain()) == best
    assert Best.from_plain(None) == Best()
