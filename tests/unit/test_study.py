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


def result(study, arm, seed, **metrics):
    return study.Result(arm, seed, {"end": metrics})


def test_differences_pair_the_seeds_that_both_arms_have(study):
    results = [result(study, "residual", seed, loss=value) for seed, value in ((2, 5.0), (0, 1.0), (1, 3.0))]
    results += [result(study, "plain", seed, loss=value) for seed, value in ((0, 0.5), (2, 1.0), (3, 9.0))]
    comparison = study.Comparison("residual - plain", "residual", "plain")
    table = study.tabulate(results)
    assert study.differences(table, comparison, "loss") == [0.5, 4.0]
    assert study.differences(table, comparison, "style") == []
    assert study.differences(table, replace(comparison, arm="clean"), "loss") == []


def test_a_verdict_needs_an_interval_without_zero_and_knows_the_direction(study):
    up, down, none = (
        study.Estimate(m, 0, low, high) for m, low, high in ((2, 1, 3), (-2, -3, -1), (1, -1, 3))
    )
    assert [study.verdict("unseen.loss", e) for e in (up, down, none)] == ["worse", "better", ""]
    assert [study.verdict("unseen.style@20", e) for e in (up, down, none)] == ["better", "worse", ""]
    assert [study.verdict("unseen.power", e) for e in (up, down, none)] == ["up", "down", ""]


def test_real_pictures_are_at_distance_zero_from_themselves(study):
    pixels = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    real = study.Pictures(None, pixels, study.style_net().pooled(pixels))
    seen = study.look(pixels, real, taught=real)
    assert (seen["distance"], seen["own"]) == pytest.approx((0, 0), abs=1e-6)
    assert seen["nearest"] == pytest.approx(0, abs=1e-3)
    assert study.look(1 - pixels, real, real)["distance"] > 0.005


def test_a_state_is_chosen_by_one_half_alone(study):
    states = [study.Checkpoint(i, None, losses) for i, losses in enumerate(((3, 1), (2, 2), (1, 3)))]
    assert [study.best(states, half) for half in (0, 1)] == [2, 0]


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


def test_equal_compute_is_equal(study):
    full = 300
    cost = {name: arm.steps(full) * study.step_cost(arm.rollout) for name, arm in study.ARMS.items()}
    assert cost["plain, longer"] == pytest.approx(cost["quickstart"], rel=0.005)
    assert cost["quickstart, shorter"] == pytest.approx(cost["plain"], rel=0.005)
    assert cost["plain"] < cost["residual"] == cost["clean"] < cost["quickstart"]


def test_the_quickstart_arm_is_the_shipped_workflow(study):
    workflow = json.loads((ROOT / "workflows" / "quickstart.json").read_text())
    shown = {node["type"]: node.get("widgets_values_named", {}) for node in workflow["nodes"]}
    config = study.Plan().config(study.ARMS["quickstart"], seed=0)
    assert {k: getattr(config.rollout, k) for k in shown["RolloutScheduledSampling"]} == shown[
        "RolloutScheduledSampling"
    ]
    reflex = shown["RolloutReflexFlow"]
    assert {k: getattr(config.rollout.reflexflow, k) for k in reflex} == reflex
    trained = shown["RolloutTrainLoRA"]
    assert (config.steps, config.batch_size, config.caption_dropout) == (
        trained["steps"],
        trained["batch_size"],
        trained["caption_dropout"],
    )
    optimizer = shown["RolloutOptimizerSettings"]
    names = {"optimizer": "name", "learning_rate": "lr", "final_rate": "final_lr"}
    assert {k: getattr(config.optimizer, names.get(k, k)) for k in optimizer} == optimizer
    lora = shown["RolloutLoRASettings"]
    assert config.lora.targets == tuple(lora["targets"].splitlines())
    assert (config.lora.rank, config.lora.alpha) == (lora["rank"], lora["alpha"])


def test_halves_are_whole_and_apart(study, make_data):
    first, second = study.Pictures(make_data(12), None, None).halves()
    assert first.buckets[0].names + second.buckets[0].names == tuple(map(str, range(12)))
    whole = make_data(12).buckets[0].latents
    torch.testing.assert_close(torch.cat([first.buckets[0].latents, second.buckets[0].latents]), whole)


# --- the stored study


def test_the_page_quotes_the_stored_study(study, capsys):
    stored, page = ROOT / "docs" / "study.json", (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    assert stored.stat().st_size < 100_000
    table = study.tabulate([study.Result(**r) for r in json.loads(stored.read_text())])
    assert min(len(table[arm]) for arm in ("plain", "plain, longer", "residual", "clean", "quickstart")) >= 4
    study.report(table)
    printed = capsys.readouterr().out
    for comparison in study.COMPARISONS:
        for metric in study.MAIN:
            cell = study.difference_cell(table, comparison, metric).partition("]")[0]
            assert cell in page
            assert cell in printed
