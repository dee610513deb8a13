"""The study's statistics by hand, its runner through interruptions, and arms that are what they are called."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from rollout_trainer.training.pictures.exposure import energy_distance
from rollout_trainer.training.trial.trial import step_cost

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("study", ROOT / "benchmarks" / "study.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["study"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


# --- statistics


def test_an_estimate_by_hand(study):
    e = study.Estimate.of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (e.mean, e.error) == pytest.approx((3, math.sqrt(2.5 / 5)))
    assert (e.low, e.high) == pytest.approx((3 - 2.776 * e.error, 3 + 2.776 * e.error))
    assert e.distinct
    assert not study.Estimate.of([-1.0, 0.5, 1.0]).distinct
    with pytest.raises(ValueError, match="values must be 2 to 15, got 1"):
        study.Estimate.of([1.0])


def test_the_quantiles_are_students(study):
    for freedom, quantile in enumerate(study.STUDENT, start=1):
        t = torch.linspace(0, quantile, 20_001, dtype=torch.float64)
        density = torch.distributions.StudentT(torch.tensor(float(freedom), dtype=torch.float64)).log_prob(t)
        assert 0.5 + torch.trapezoid(density.exp(), t) == pytest.approx(0.975, abs=3e-5)


def test_intervals_hold_the_truth_as_often_as_they_say(study):
    draws = 3 + torch.randn(4000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    held = [e.low < 3 < e.high for e in map(study.Estimate.of, draws.tolist())]
    assert sum(held) / len(held) == pytest.approx(0.95, abs=0.012)


def test_energy_distance_of_four_points():
    a, b = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [5.0]])
    # Without pairs of one caption: across |0 - 5| and |2 - 1|, within |0 - 2| and |1 - 5|.
    assert energy_distance(a, b) == pytest.approx(2 * 3 - 2 - 4)
    assert energy_distance(torch.zeros(2, 4), torch.full((2, 4), 3.0)) == pytest.approx(2 * 6 / math.sqrt(4))
    with pytest.raises(ValueError, match="a row for each caption, got 2 and 1"):
        energy_distance(a, b[:1])


def result(study, arm, seed, **metrics):
    return study.Result(arm, seed, {"end": metrics})


def test_differences_pair_the_seeds_that_both_arms_have(study):
    results = [result(study, "residual", seed, loss=value) for seed, value in ((2, 5.0), (0, 1.0), (1, 3.0))]
    results += [result(study, "plain", seed, loss=value) for seed, value in ((0, 0.5), (2, 1.0), (3, 9.0))]
    comparison = study.Comparison("residual - plain", "residual", "plain")
    table = study.tabulated(results, ["residual", "plain"])
    assert study.differences(table, comparison, "loss") == [0.5, 4.0]
    assert study.differences(table, comparison, "style") == []
    assert study.differences(table, replace(comparison, arm="clean"), "loss") == []


def test_a_verdict_needs_an_interval_without_zero_and_knows_the_direction(study):
    up, down, none = (
        study.Estimate(m, 0, low, high) for m, low, high in ((2, 1, 3), (-2, -3, -1), (1, -1, 3))
    )
    assert [study.verdict("style@own", e) for e in (up, down, none)] == ["worse", "better", ""]
    assert [study.verdict("blob@2", e) for e in (up, down, none)] == ["better", "worse", ""]
    assert [study.verdict("step", e) for e in (up, down, none)] == ["up", "down", ""]


def test_an_arms_own_scale_is_that_of_the_least_mean_not_of_the_least_value(study):
    values = ((0.1, 0.9), (0.5, 0.2), (0.6, 0.2))
    runs = {
        i: {"best": {"style@1": a, "style@2": b, "shapes@1": b, "shapes@2": a}}
        for i, (a, b) in enumerate(values)
    }
    own = study.with_own(runs)
    assert [run["best"]["style@own"] for run in own.values()] == [0.1, 0.5, 0.6]
    assert {run["best"]["style.cfg"] for run in own.values()} == {1.0}
    assert [run["best"]["shapes@own"] for run in own.values()] == [0.1, 0.5, 0.6]
    assert {run["best"]["shapes.cfg"] for run in own.values()} == {2.0}


# --- the features that nothing was trained for


def test_an_edge_lies_in_the_bin_of_its_direction_whatever_its_sign(study):
    ramp = torch.linspace(0, 1, 64).expand(3, 64, 64)
    pictures = torch.stack([ramp, ramp.flip(-1), ramp.transpose(1, 2)])
    histogram = study.shapes(pictures).reshape(3, 12, 8, 8)[:, :9, 3, 3]  # a cell in the middle
    torch.testing.assert_close(histogram[0], histogram[1], atol=1e-4, rtol=0)
    assert histogram[0].argmax() == 0  # across: gradient along x
    assert histogram[2, 4:6].min() > 0.7 * histogram[2].max()  # upright lies between two of nine
    assert histogram[2, [0, 1, 2, 7, 8]].max() < 1e-3


def test_colours_are_those_of_the_cells(study):
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    colours = study.shapes(picture).reshape(1, 12, 8, 8)[:, 9:]
    torch.testing.assert_close(colours[0, :, 2, 5], picture[0, :, 16:24, 40:48].mean((1, 2)))


def test_real_pictures_are_at_distance_zero_from_themselves(study):
    pixels = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    own = study.Pictures("faces", None, None, None, study.Views.of(pixels), {}, 1e-3, ["a cat"])
    seen = study.looked_at(own, pixels)
    assert (seen["style"], seen["shapes"]) == pytest.approx((0, 0), abs=1e-6)
    assert min(study.looked_at(own, pixels**4)[name] for name in ("style", "shapes")) > 0.003


# --- the runner


def test_a_killed_study_goes_on_where_it_was(study, tmp_path, capsys):
    path, jobs, ran = tmp_path / "deep" / "study.jsonl", [("a", 0), ("b", 0), ("a", 1), ("b", 1)], []

    def run(arm, seed):
        if len(ran) == 2 and not resumed:
            raise KeyboardInterrupt
        ran.append((arm, seed))
        return result(study, arm, seed, loss=0.1 * seed)

    resumed = False
    with pytest.raises(KeyboardInterrupt):
        study.go_on(path, jobs, run)
    assert [(r.arm, r.seed) for r in study.read(path)] == ran == jobs[:2]
    resumed = True
    study.go_on(path, jobs, run, until=0)  # no time left
    assert ran == jobs[:2]
    study.go_on(path, jobs, run)
    study.go_on(path, jobs, run)
    assert ran == jobs
    assert study.read(path) == [result(study, arm, seed, loss=0.1 * seed) for arm, seed in jobs]
    assert len(path.read_text().splitlines()) == 4


# --- the arms


def test_every_arm_costs_what_plain_costs(study, make_source, make_data):
    own = study.Pictures(
        "faces", make_source("flow"), make_data(12), make_data(12), None, {}, 1e-3, ["a cat"]
    )
    trial = own.trial(study.Plan(), list(study.ARMS))
    cost = {arm: (own := trial.config(arm, 0)).steps * step_cost(own, trial.source) for arm in study.ARMS}
    assert all(value == pytest.approx(cost["plain"], rel=0.01) for value in cost.values())
    assert {trial.config(arm, 0).patience for arm in study.ARMS} == {3, study.NEVER}


def test_halves_are_whole_and_apart(study, make_data):
    own = study.Pictures("faces", None, None, make_data(12), None, {}, 1e-3, ["a cat"])
    first, second = own.half(0), own.half(1)
    assert first.buckets[0].names + second.buckets[0].names == tuple(map(str, range(12)))
    whole = make_data(12).buckets[0].latents
    torch.testing.assert_close(torch.cat([first.buckets[0].latents, second.buckets[0].latents]), whole)


def test_captions_of_bleeding_have_no_trigger_and_are_not_those_that_preserve_is_taught(study):
    for own, other in (("blob", "toy"), ("toy", "blob"), ("robot", "blob")):
        measured, taught = (study.without_trigger(own, other, part) for part in ("unseen", "train"))
        assert len(measured) == len(taught) == 24
        assert not {"blob", "toy"} & set(" ".join(measured + taught).replace(",", "").split())
        assert not set(measured) & set(taught)


def test_every_object_is_a_name_that_the_base_knows_and_none_is_taught_and_held_out():
    names = ROOT / "demo" / "make" / "names"
    taught, unseen, known = (
        set((names / f"{name}.txt").read_text().splitlines())
        for name in ("toy_train", "toy_unseen", "concepts")
    )
    assert len(taught) == len(unseen) == 24
    assert not taught & unseen
    assert taught | unseen <= known
    for part, own in (("taught", taught), ("unseen", unseen)):
        captions = {
            path.read_text().strip() for path in (ROOT / "benchmarks" / "objects" / part).glob("*.txt")
        }
        assert captions == {f"{name}, toy style, white background" for name in own}


# --- the stored study


def test_the_page_has_the_tables_of_the_stored_study(study):
    """`benchmarks/study.py --save docs` writes them; a figure in the page's words is one of them."""
    stored = json.loads((ROOT / "docs" / "study.json").read_text(encoding="utf-8"))
    table = study.table_of([study.Result(**own) for own in stored])
    text = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    written = text.partition(study.MARK)[2].partition(study.MARKED)[0]
    assert written.strip() == study.page(table).strip()
    assert {arm for arm in table if len(table[arm]) > 1} >= {
        f"{name}/{arm}" for name in ("faces", "objects") for arm in ("plain", "preserve")
    }


def test_saving_writes_the_tables_between_their_marks_and_nothing_else(study, tmp_path):
    metrics = {"style@1": 0.5, "style@2": 0.25, "shapes@1": 0.1, "loss": 0.3, "bleed": 0.123456789}
    metrics |= {"trained": 150.0, "planned": 300.0, "step": 90.0, "seconds": 2.0, "evaluations": 8.0}
    results = [
        study.Result(
            f"{name}/{arm}", seed, {"best": {k: v + shift + 0.01 * seed for k, v in metrics.items()}}
        )
        for name in study.SETS
        for arm, shift in (("plain", 0.0), ("preserve", -0.1))
        for seed in (0, 1)
    ]
    page = tmp_path / "study.md"
    page.write_text(f"before\n{study.MARK}\nold\n{study.MARKED}\nafter\n")
    for _ in range(2):
        study.save(results, tmp_path)
        text = page.read_text()
        assert text.startswith("before\n")
        assert text.endswith("\nafter\n")
        assert "old" not in text
    assert "| preserve - plain (2) | -0.1000 [-0.1000, -0.1000] **better** |" in text
    assert "bleeding better (-0.1000 [-0.1000, -0.1000], 2 seeds)" in text
    assert "- `preserve` on objects, 2 seeds: 0.22 of plain's bleeding (to reach: 0.5)" in text
    assert "2 seeds of plain: at 0.30 of the steps, training ended by itself at 0.50 (to reach: 0.6)" in text
    assert json.loads((tmp_path / "study.json").read_text())[0]["metrics"]["best"]["bleed"] == 0.12346
    assert (tmp_path / "study.png").stat().st_size > 10_000
