"""A stage with other settings: one run in two folders, bit for bit, and each folder says what it is."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from everything import EVERYTHING, ROLLOUT, same

from rollout_trainer.training.objective.config import RolloutConfig
from rollout_trainer.training.runs.export import metadata
from rollout_trainer.training.runs.report import describe, report
from rollout_trainer.training.runs.run import reopen, start, train
from rollout_trainer.training.runs.stages import branch
from rollout_trainer.training.trainer.optim import OptimizerConfig
from rollout_trainer.training.trainer.trainer import Trainer, training_mode

RAMP = RolloutConfig(max_step_offset=4, ramp_steps=5, prob_end=1.0, steps_per_trajectory=20, reuse=3)


@pytest.fixture
def begin(toy_source, make_data, make_config, tmp_path):
    """``begin(steps, **changes)``: a run trained for so many steps."""

    def begun(steps=6, **changes):
        return train(start(tmp_path, "t", toy_source, make_data(), make_config(**changes)), steps)

    return begun


def folders(run):
    return sorted(path.name for path in run.folder.path.parent.iterdir())


def files(folder):
    return {p.name: p.read_bytes() for p in folder.path.iterdir()}


@pytest.mark.parametrize("rollout", [ROLLOUT, RAMP], ids=["probability", "ramp"])
def test_plain_and_then_rolled_out_is_the_run_that_begins_to_roll_out_there(begin, rollout):
    """The oracle is one uninterrupted run, whose rollouts begin at the same step by its settings."""
    staged = train(branch(begin(6), rollout), 6)
    assert same(staged.state, begin(12, rollout=replace(rollout, start_step=6)).state)
    assert sum(staged.history.columns["rolled"]) > 0


def test_another_rate_is_the_rate_of_its_steps(begin, toy_source, make_data, make_config):
    changes = EVERYTHING | {"optimizer": OptimizerConfig(lr=1e-2, schedule="cosine")}
    first = begin(6, **changes)
    lower = branch(first, learning_rate=2e-3)
    own = replace(first.config.optimizer, lr=2e-3)
    config = replace(first.config, optimizer=own, lr_from=6)
    with training_mode(), Trainer(toy_source, make_data(), config) as trainer:
        trainer.load(first.state)
        for _ in range(4):
            trainer.step()
        expected = trainer.state()
    assert same(train(lower, 4).state, expected)
    rates = train(lower, 1).history.columns["lr"]
    assert rates[6] == pytest.approx(OptimizerConfig(lr=2e-3, schedule="cosine").lr_at(0, 94))
    assert rates[5] == pytest.approx(changes["optimizer"].lr_at(5, 100))


def test_resumed_is_uninterrupted(begin, make_source, make_data):
    whole = train(branch(begin(5, **EVERYTHING), RAMP, 5e-3), 8)
    for stop in (0, 3, 7):
        part = train(branch(begin(5, **EVERYTHING), RAMP, 5e-3), stop)
        again = reopen(part.folder.path, make_source("flow"), make_data())  # as another process would
        assert (again.step, again.config) == (5 + stop, part.config)
        stage = branch(again, RAMP, 5e-3)  # its own settings: no branch, and the ramp goes on
        assert stage is again
        assert same(whole.state, train(stage, 8 - stop).state)


def test_a_ramp_goes_on_while_the_rate_changes(begin):
    ramp = train(branch(begin(4), RAMP), 2)
    lower = train(branch(ramp, learning_rate=1e-3), 4)
    whole = begin(10, rollout=replace(RAMP, start_step=4))
    assert lower.history.columns["probability"] == whole.history.columns["probability"]


def test_a_run_in_three_folders(begin):
    """Plain, with rollouts, plain again: the history is whole and every folder says what it is."""
    first = begin(4)
    second = train(branch(first, ROLLOUT), 4)
    third = train(branch(second, RolloutConfig(), 1e-3), 4)
    assert folders(first) == ["t-0001", "t-0001-0001", "t-0001-0001-0001"]
    assert [(p["run"], p["step"]) for p in third.parents] == [("t-0001", 4), ("t-0001-0001", 8)]
    assert [p["config"]["rollout"]["max_step_offset"] for p in third.parents] == [0, 4]
    columns = third.history.columns
    assert list(columns["probability"]) == [0.0] * 4 + [0.7] * 4 + [0.0] * 4
    assert list(columns["lr"]) == [1e-2] * 8 + [1e-3] * 4
    facts = report(third)
    assert facts["parents"] == [{"run": "t-0001", "step": 4}, {"run": "t-0001-0001", "step": 8}]
    assert (facts["steps"], len(facts["loss"]["total"])) == (12, 12)
    assert facts["row_evaluations"]["train"] == 12 * 4
    assert "went on from step 8 of t-0001-0001" in describe(third, facts)
    header = metadata(third)
    assert json.loads(header["config"])["optimizer"]["lr"] == 1e-3
    assert json.loads(header["parents"]) == third.parents
    assert "parents" not in metadata(first)


def test_the_same_stage_again_is_the_same_folder(begin, make_source, make_data):
    first = begin()
    once = train(branch(first, ROLLOUT), 4)
    reopened = reopen(first.folder.path, make_source("flow"), make_data(), first.step)
    again = branch(reopened, ROLLOUT)
    assert (again.folder, again.step) == (once.folder, 6)  # where the input says, not where the folder stands
    assert same(train(again, 4).state, once.state)
    assert folders(first) == ["t-0001", "t-0001-0001"]


def test_branches_do_not_touch_each_other(begin):
    first = begin()
    before = files(first.folder)
    one = train(branch(first, ROLLOUT), 3)
    kept = files(one.folder)
    other = train(branch(first, replace(ROLLOUT, probability=0.2)), 3)
    rate = train(branch(first, learning_rate=1e-3), 3)
    assert len({run.folder for run in (first, one, other, rate)}) == 4
    assert files(first.folder) == before
    assert files(one.folder) == kept
    assert same(branch(first, learning_rate=1e-3).state, first.state)  # it begins with a copy


@pytest.mark.parametrize(
    "own", [{}, {"rollout": ROLLOUT}, {"learning_rate": 1e-2}, {"rollout": ROLLOUT, "learning_rate": 1e-2}]
)
def test_the_runs_own_settings_are_no_branch(own, begin):
    run = begin(2, rollout=ROLLOUT)
    assert branch(run, **own) is run
    assert folders(run) == ["t-0001"]


def test_a_branch_that_was_killed_before_its_first_state_is_completed(begin):
    first = begin()
    cut = branch(first, ROLLOUT)
    cut.folder.state_path(6).unlink()
    assert same(branch(first, ROLLOUT).state, first.state)
    assert folders(first) == ["t-0001", "t-0001-0001"]


def test_another_run_of_the_same_name_has_branches_of_its_own(begin):
    """Folder numbers are taken again once a run was deleted; its branches must not be taken for the new run's."""
    first = begin()
    old = branch(first, ROLLOUT)
    shutil.rmtree(first.folder.path)
    new = branch(begin(seed=4), ROLLOUT)
    assert new.parents[0]["run"] == old.parents[0]["run"]
    assert (old.folder.path.name, new.folder.path.name) == ("t-0001-0001", "t-0001-0002")


def test_states_of_the_old_rollouts_are_not_trained_on(begin):
    run = begin(rollout=RAMP)
    assert run.state.group("pool")
    assert not branch(run, replace(RAMP, target="clean")).state.group("pool")
    assert branch(run, learning_rate=1e-3).state.group("pool").keys() == run.state.group("pool").keys()


def test_the_average_of_the_weights_goes_on(begin):
    run = begin(ema_decay=0.9)
    assert all(
        torch.equal(v, run.adapter.tensors[k]) for k, v in branch(run, ROLLOUT).adapter.tensors.items()
    )


def test_the_node_branches_and_trains_nothing_where_there_is_nothing_to_do(begin, tmp_path):
    from rollout_trainer.host.standalone import host as standalone
    from rollout_trainer.nodes.train import RolloutTrainSteps

    first = begin()
    with standalone.installed(standalone.StandaloneHost(tmp_path, quiet=True)):
        done = RolloutTrainSteps.execute(first, 3, until_step=6, scheduled_sampling=ROLLOUT)[0]
        assert done is first
        staged = RolloutTrainSteps.execute(first, 3, learning_rate=1e-3, scheduled_sampling=ROLLOUT)[0]
        onward = RolloutTrainSteps.execute(staged, 3)[0]
    assert (staged.step, onward.step) == (9, 12)
    assert staged.folder == onward.folder != first.folder
    assert staged.config.rollout == ROLLOUT
