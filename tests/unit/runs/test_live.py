"""What a panel is told: short at any length, complete at any moment."""

import json
import math

import pytest

from rollout_trainer.training.pictures.film import Film
from rollout_trainer.training.runs.live import DRAWN, FILMS, POINTS, Curve, Live
from rollout_trainer.training.runs.run import start, train
from rollout_trainer.training.trainer.trainer import StepReport


@pytest.mark.parametrize("n", [1, 7, 2 * POINTS, 2 * POINTS + 1, 5000])
def test_a_curve_holds_means_of_equal_bins_and_ends_at_the_last_step(n):
    values = [math.sin(i) for i in range(n)]
    curve = Curve()
    for value in values:
        curve.add({"base": value})
    plain, width = curve.plain(), curve.width
    assert len(plain["step"]) <= 2 * POINTS
    assert n <= 2 * POINTS or len(plain["step"]) >= POINTS
    assert plain["step"][-1] == n
    bins = [values[i : i + width] for i in range(0, n, width)]
    assert plain["base"] == pytest.approx([sum(b) / len(b) for b in bins], rel=1e-4)


def test_what_was_not_measured_counts_nowhere_and_is_null():
    curve = Curve()
    for i in range(4 * POINTS):
        curve.add({"base": 1.0, "adr": 2.0 if i % 8 == 0 else math.nan})
    plain = curve.plain()
    assert curve.width == 2
    assert plain["adr"][:4] == [2.0, None, None, None]
    assert set(plain["fc"]) == {None}
    json.dumps(plain, allow_nan=False)


def test_a_stage_shows_the_whole_run_and_what_the_history_says(make_data, make_config, toy_source, tmp_path):
    run = train(start(tmp_path, "t", toy_source, make_data(), make_config()), 3)
    live = Live(run, 4)
    assert live.facts()["curve"]["base"] == pytest.approx(run.history.columns["base"], rel=1e-4)
    run = train(run, 4, live.add)
    facts = live.facts()
    json.dumps(facts, allow_nan=False)
    for name in set(DRAWN) & run.history.columns.keys():
        measured = [None if math.isnan(v) else pytest.approx(v, rel=1e-4) for v in run.history.columns[name]]
        assert facts["curve"][name] == measured
    assert (facts["step"], facts["last_step"], facts["seconds_left"]) == (7, 7, 0.0)
    assert facts["rollout_share"] == 0.0
    assert facts["memory"] > 2**20
    assert (facts["film"], facts["saved"]) == ([], 3)
    live.saved()
    assert live.facts()["saved"] == 7
    assert live.facts()["saved_file"] == f"{run.folder.path.name}/{run.folder.state_path(7).name}"


def test_films_of_the_stages_before_are_told_of_and_few_at_any_length(
    make_data, make_config, toy_source, tmp_path
):
    branch = train(start(tmp_path, "t", toy_source, make_data(), make_config(preview_every=2)), 2)
    train(branch, 2)
    live = Live(branch, 3)  # another stage that goes on from step 2
    assert live.facts()["film"] == [0, 2]
    train(branch, 3, live.add)
    assert live.facts()["film"] == [0, 2, 4]
    for step in range(5, 1000):
        film = Film(step, (1.0,), (0.0,), (0.0,), ())
        live.add(StepReport(step, 1.0, 0.0, film=film, saved=500 * (step == 600)))
    told = live.facts()["film"]
    assert len(told) <= FILMS
    assert (told[0], told[-1], told) == (0, 999, sorted(set(told)))
    assert live.facts()["saved"] == 500
