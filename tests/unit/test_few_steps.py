"""The study's parts on few steps, the way there and the subject: their arithmetic by hand, and what they stand on."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from rollout_trainer.demo.make.captions import BACKGROUNDS, held_out_pairs, read_names
from rollout_trainer.samplers import trajectory
from rollout_trainer.training.models.source import LoadedModel

ROOT = Path(__file__).parents[2]


def module(name: str) -> ModuleType:
    """A program of benchmarks/, as it finds its neighbours."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def few() -> ModuleType:
    return module("few_steps")


@pytest.fixture(scope="module")
def fronts() -> ModuleType:
    return module("fronts")


# --- few steps


def test_quality_kept_by_hand(few):
    table = {
        few.BASE: {0: {"best": {"style": 0.5}}, 1: {"best": {"style": 0.7}}},
        "plain": {0: {"best": {"style": 0.3}}, 1: {"best": {"style": 0.4}}, 2: {"best": {"style": 9.0}}},
        few.CEILING: {0: {"best": {"style": 0.1}}, 1: {"best": {"style": 0.1}}},
    }
    assert few.kept(table, "plain", "style") == pytest.approx((0.6 - 0.35) / (0.6 - 0.1))
    assert few.kept(table, few.BASE, "style") == 0
    assert few.kept(table, few.CEILING, "style") == pytest.approx(1)
    assert math.isnan(few.kept(table, "preserve", "style"))


def test_the_student_is_shown_what_the_base_knows_and_no_trigger(few):
    captions = few.known_captions(300, torch.Generator().manual_seed(0))
    names, held_out = set(read_names("concepts.txt")), held_out_pairs()
    assert len(set(captions)) > 250
    for own in captions:
        name, style, background = own.split(", ")
        assert name in names
        assert style in ("noto style", "flat style")
        assert background.removesuffix(" background") in BACKGROUNDS
        assert (name, style.removesuffix(" style")) not in held_out


def test_the_states_that_a_student_is_shown_lie_on_the_teachers_way(few, make_source):
    source = make_source("flow")
    cond = source.encode_text(["a", "b", "c"])
    x = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    whole = trajectory(source.schedule, 1.0, 0.0, 20)[0]
    path = few.led(LoadedModel(source), cond, x, whole, 2.0)
    assert len(path) == 20
    # Rows may begin at other places, as own states do: each goes its own part of the way.
    starts = torch.tensor([1.0, 0.75, 0.5], dtype=torch.float64)
    fine = trajectory(source.schedule, starts, starts - 0.25, 5)
    torch.testing.assert_close(fine[1], whole[5:11])
    ends = few.led(LoadedModel(source), cond, x, fine, 2.0)[-1]
    torch.testing.assert_close(ends[:1], path[4][:1])


def test_the_ceiling_is_taken_at_its_own_scale_for_each_space(few):
    metrics = {"style@1": 0.3, "style@2": 0.1, "shapes@1": 0.01, "shapes@2": 0.02}
    metrics |= {f"{name}@{cfg}": cfg for name in ("blob", "sharp") for cfg in (1, 2)}
    own = few.table_of([few.Result(few.CEILING, 0, {"best": metrics})])[few.CEILING][0]["best"]
    assert (own["style"], own["blob"], own["sharp"], own["shapes"]) == (0.1, 2, 2, 0.01)
    assert (own["style.cfg"], own["shapes.cfg"]) == (2.0, 1.0)


def test_sharpness_is_the_slope_of_the_grey_picture(few):
    ramp = torch.linspace(0, 1, 11).expand(1, 3, 11, 11)
    assert few.sharpness(ramp) == pytest.approx(0.1)
    assert few.sharpness(torch.full((1, 3, 4, 4), 0.5)) == 0


@pytest.mark.parametrize("name", ["few_steps", "fronts"])
def test_the_page_has_the_tables_of_what_is_stored(name, few, fronts):
    """`--save docs` writes both; there is no table without its numbers, and no numbers without their table."""
    program = {"few_steps": few, "fronts": fronts}[name]
    mark = few.MARK.replace("study.py", f"{name}.py")
    _, _, rest = (ROOT / "docs" / "study.md").read_text(encoding="utf-8").partition(mark)
    stored = {part: ROOT / "docs" / f"{part}.json" for part in ("study", name)}
    assert bool(rest) == stored[name].exists()
    if not rest:
        return
    own, study = (
        [few.Result(**line) for line in json.loads(stored[part].read_text(encoding="utf-8"))]
        for part in (name, "study")
    )
    more = [study] if name == "fronts" else []
    assert rest.partition(few.MARKED)[0].strip() == program.page(program.table_of(own), *more).strip()


# --- the way there


def test_a_crossing_is_found_on_a_straight_line_and_metrics_are_read_there(fronts):
    run = {
        str(step): {"share": share, "blob@2": blob, "bleed": bleed}
        for step, share, blob, bleed in ((15, 0.05, 0.1, 0.02), (30, 0.1, 0.5, 0.06), (45, 0.15, 0.9, 0.1))
    }
    share = fronts.crossing(run, "blob@2", 0.7)
    assert share == pytest.approx(0.125)
    assert fronts.read_off(run, "bleed", share) == pytest.approx(0.08)
    assert fronts.read_off(run, "bleed", 0.01) == 0.02
    assert math.isnan(fronts.crossing(run, "blob@2", 0.95))


# --- the subject


def test_the_subject_is_what_its_program_draws(tmp_path):
    pytest.importorskip("resvg_py")
    from rollout_trainer.demo.make.subject import save_subject

    save_subject(tmp_path)
    stored = ROOT / "benchmarks" / "subject"
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.*")}
    assert made == {path.relative_to(stored): path.read_bytes() for path in stored.rglob("*.*")}
    assert len(list((tmp_path / "taught").glob("*.png"))) == 6
    assert len(list((tmp_path / "unseen").glob("*.png"))) == 24
