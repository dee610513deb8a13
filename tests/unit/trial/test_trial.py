"""A trial: arms that differ in what they say alone, at equal compute; killed anywhere, it ends with the same table."""

import json
import random
import shutil
from contextlib import suppress
from dataclasses import replace

import pytest
import torch

from rollout_trainer.training.objective.config import ReflexFlowConfig, RolloutConfig
from rollout_trainer.training.pictures.plots import difference_plot
from rollout_trainer.training.trial.trial import Drawing, Trial, carry_out, sheets, step_cost
from rollout_trainer.training.trial.verdict import as_text, best_cfg, compared, plotted

ROLLOUT = RolloutConfig(
    max_step_offset=3, probability=0.5, steps_per_trajectory=20, reflexflow=ReflexFlowConfig("off")
)


@pytest.fixture
def make_trial(make_source, make_data, make_config):
    def make(**changes):
        plain = make_config(
            steps=12, hold_out=0.3, validate_every=2, patience=3, save_every=1, caption_dropout=0.1
        )
        arms = {"plain": plain, "rollouts / 3": replace(plain, rollout=ROLLOUT)}
        return Trial(
            **{
                "source": make_source("flow"),
                "data": make_data(16),
                "arms": arms,
                "drawing": Drawing(steps=2, cfgs=(1.0, 2.0)),
                **changes,
            }
        )

    return make


# --- what is equal ------------------------------------------------------------------------------


def test_equal_compute_is_equal_and_steps_follow_from_it(make_trial, make_config):
    plain = make_config(steps=300)
    arms = {
        "plain": plain,
        "rolled": replace(plain, rollout=ROLLOUT),
        "large": replace(plain, batch_size=8, accumulation=2),
        "mixflow": replace(plain, rollout=RolloutConfig(target="mixflow", probability=1.0)),
    }
    trial = make_trial(arms=arms)
    configs = {name: trial.config(name, 0) for name in arms}
    cost = {name: own.steps * step_cost(own, trial.source) for name, own in configs.items()}
    assert all(value == pytest.approx(cost["plain"], rel=0.01) for value in cost.values())
    assert configs["plain"].steps == configs["mixflow"].steps == 300
    assert configs["large"].steps == 75
    assert configs["rolled"].steps == round(300 * 2 / 2.75)  # 0.5 x (0 + 1 + 2 + 3) / 4 forwards more
    assert {name: own.steps for name, own in configs.items()} != {
        name: make_trial(arms=arms, equal="steps").config(name, 0).steps for name in arms
    }
    checkpointed = replace(plain, gradient_checkpointing=True)
    assert step_cost(checkpointed, trial.source) == 12


def test_arms_of_one_seed_share_weights_batches_and_noise(make_trial, tmp_path):
    """Two arms that differ in nothing end at the same numbers; another seed does not."""
    trial = make_trial()
    plain = trial.arms["plain"]
    table = carry_out(replace(trial, arms={"a": plain, "b": plain}), tmp_path)
    assert table["a"] == table["b"]
    assert table["a"][0] != table["a"][1]
    assert all(found.values == (0.0, 0.0) for found in compared(table))
    assert all("no difference seen" in found.sentence for found in compared(table))


def test_every_arm_has_pictures_held_out_and_a_best_moment(make_trial, make_config):
    trial = make_trial(arms={"a": make_config(steps=100), "b": make_config(steps=100, seed=9)})
    config = trial.config("b", 1)
    assert (config.seed, config.hold_out, config.patience, config.validate_every) == (1, 0.2, 5, 5)
    assert len(trial.held_out()) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {}}, "arms must be 2 to 12, got 0"),
        ({"seeds": 0}, "seeds must be from 1 to 15, got 0"),
        ({"equal": "time"}, "equal must be compute or steps, got 'time'"),
    ],
)
def test_a_trial_that_cannot_be_is_refused(changes, message, make_trial):
    with pytest.raises(ValueError, match=message):
        make_trial(**changes)


# --- it goes on where it was --------------------------------------------------------------------


class Killed(BaseException):
    """Nothing that catches it changes what the copy of the disk holds."""


def copied(source, target):
    """What the run's own thread deletes in the meantime is not there any more."""
    with suppress(FileNotFoundError):
        shutil.copy2(source, target)


def killed(trial, here, there, after):
    """Go on with a trial in `here` for so many steps, then leave the disk as it is `there`; its table if it ends."""
    left = after

    def watch(arm, seed, report):
        nonlocal left
        left -= 1
        if left == 0:
            shutil.copytree(here, there, copy_function=copied)
            raise Killed

    with suppress(Killed):
        return carry_out(trial, here, watch)


def test_killed_at_random_moments_it_ends_with_the_same_table(make_trial, tmp_path):
    """Every time another process finds the disk as it was at the kill, in the middle of a run."""
    whole = carry_out(make_trial(), tmp_path / "whole")
    g, places = random.Random(5), [tmp_path / "0"]
    places[0].mkdir()
    table = None
    while table is None:
        table = killed(make_trial(), places[-1], tmp_path / str(len(places)), after=g.randint(3, 14))
        places += [tmp_path / str(len(places))] if table is None else []
    here = places[-1]
    assert len(places) > 3
    assert table == whole
    assert as_text(table) == as_text(whole)
    before = sorted(path.stat().st_mtime_ns for path in here.rglob("state-*"))
    assert carry_out(make_trial(), here) == whole  # nothing is left to do
    assert sorted(path.stat().st_mtime_ns for path in here.rglob("state-*")) == before


def test_more_seeds_are_added_and_another_trial_refused(make_trial, tmp_path):
    one = carry_out(make_trial(seeds=1), tmp_path)
    two = carry_out(make_trial(seeds=2), tmp_path)
    assert {arm: runs[0] for arm, runs in two.items()} == {arm: runs[0] for arm, runs in one.items()}
    other = make_trial()
    other = replace(other, arms={name: replace(own, batch_size=2) for name, own in other.arms.items()})
    with pytest.raises(ValueError, match="the folder of a trial must be empty or hold the same one"):
        carry_out(other, tmp_path)


# --- what it says -------------------------------------------------------------------------------


def table_of(*pairs):
    """Two arms; for each seed their distances at CFG 1 and 2, and their losses."""
    arms = {"plain": {}, "other": {}}
    for seed, values in enumerate(pairs):
        for arm, (first, second, loss) in zip(arms, values, strict=True):
            own = {"loss": loss, "step": 4, "trained": 8, "planned": 9, "evaluations": 80}
            arms[arm][seed] = {"best": own | {"distance@1": first, "distance@2": second}}
    return arms


def test_a_difference_is_told_from_none():
    table = table_of(*[((0.5, 0.4 + e, 1.0), (0.2 + e, 0.6, 1.0 + 9 * e)) for e in (0.0, 1 / 128, -1 / 128)])
    found = {d.metric: d for d in compared(table)}
    assert list(found) == ["distance@own", "distance@1", "distance@2", "loss"]
    assert (best_cfg(table, "plain"), best_cfg(table, "other")) == (2, 1)
    own = found["distance@own"]
    assert own.values == pytest.approx((-0.2, -0.2, -0.2))
    assert "distance of drawn pictures to held-out ones at each arm's own best CFG: lower" in own.sentence
    assert "no difference seen (+0 [-0.1747, +0.1747], 3 seeds)" in found["loss"].sentence
    assert "higher, which is worse" in found["distance@2"].sentence
    text = as_text(table)
    assert text.startswith("| arm (seeds) | step | trained | planned | evaluations | distance@own |")
    assert "Own best CFG: plain 2, other 1" in text
    assert own.sentence in text
    picture = difference_plot(plotted(compared(table)), "distance")
    assert picture.shape == (180, 800, 3)


def test_one_seed_says_nothing_of_chance():
    (first, *_) = compared(table_of(((0.5, 0.4, 1.0), (0.2, 0.6, 1.0))))
    assert first.sentence.endswith("-0.2 of one seed, which may be chance")
    assert plotted([first]) == {"other - plain": ((first.values[0],), *(first.values[0],) * 3)}


def test_the_sheet_shows_the_best_moments_at_one_seed(make_trial, tmp_path):
    trial = make_trial(seeds=1)
    trial.source.decode_latents = trial.source.preview_latents
    table = carry_out(trial, tmp_path)
    shown = sheets(trial, tmp_path, {arm: best_cfg(table, arm) for arm in table}, columns=3)
    assert list(shown) == ["real", "plain", "rollouts / 3"]
    assert {tuple(pixels.shape) for pixels in shown.values()} == {(3, 6, 6, 3)}
    assert all(pixels.min() >= 0 and pixels.max() <= 1 for pixels in shown.values())
    assert not torch.equal(shown["plain"], shown["rollouts / 3"])
    again = sheets(trial, tmp_path, {arm: best_cfg(table, arm) for arm in table}, columns=3)
    assert all(torch.equal(shown[name], again[name]) for name in shown)


def test_the_file_is_plain(make_trial, tmp_path):
    carry_out(make_trial(seeds=1), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "trial.jsonl").read_text().splitlines()]
    assert [(line["arm"], line["seed"]) for line in lines] == [("plain", 0), ("rollouts / 3", 0)]
    assert lines[0]["metrics"]["best"].keys() == {
        *("loss", "step", "trained", "planned", "evaluations", "distance@1", "distance@2"),
    }
    described = json.loads((tmp_path / "trial.json").read_text())
    assert described["arms"]["plain"]["patience"] == 3
