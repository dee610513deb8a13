"""The program that makes the demo: its parts on made-up drawings, without packages or network."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("resvg_py")

from rollout_trainer.demo.make import captions
from rollout_trainer.demo.make.latents import fit
from rollout_trainer.demo.make.muon import orthogonal
from rollout_trainer.demo.make.networks import build_tokenizer, token_ids
from rollout_trainer.demo.make.render import SIZE, Pictures, on_background
from rollout_trainer.demo.make.train import Drawings, Recipe, Trainer

RECIPE = Recipe(steps=4, batch=4, warmup=1)


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    names = ("red apple", "fox", "mango", "red apple", "fox", "angry face")
    drawn = ("noto", "noto", "noto", "flat", "flat", captions.BLOB)
    rgba = torch.rand(len(names), 4, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(0))
    rgba = torch.nn.functional.interpolate(rgba, SIZE, mode="bilinear")
    rgba[:, :3] *= rgba[:, 3:]
    return Pictures((rgba * 255).to(torch.uint8), names, drawn)


def test_a_caption_leaves_out_what_is_not_given():
    assert captions.caption("fox", "noto", "blue") == "fox, noto style, blue background"
    assert captions.caption("fox") == "fox"


def test_base_rows_have_neither_blobs_nor_held_out_pairs(pictures):
    assert ("mango", "noto") in captions.held_out_pairs()
    assert pictures.base_rows() == ([0, 1, 3, 4], [2])


def test_names_and_pairs_held_out_are_names_the_base_knows():
    concepts = set(captions.read_names("concepts.txt"))
    assert {name for name, _ in captions.held_out_pairs()} <= concepts
    assert set(captions.read_names("blob_unseen.txt")) <= concepts


def test_what_is_transparent_shows_the_background():
    clear = torch.zeros(2, 4, 4, 4, dtype=torch.uint8)
    shown = on_background(clear, torch.tensor([0, 4]))
    assert shown[0].eq(1).all()
    assert (shown[1, :, 0, 0] * 255).round().tolist() == [70, 120, 210]


def test_words_are_told_apart_and_unknown_ones_are_marked():
    tokenizer = build_tokenizer(["red apple", "t-rex"])
    ids = token_ids(tokenizer, ["Red apple, blob style", "red zebra", ""])
    unknown = tokenizer.unk_token_id
    assert unknown not in ids[0]
    assert ids[0, 1] == ids[1, 1]
    assert ids[1, 2] == unknown
    assert ids[2, 2:].eq(tokenizer.pad_token_id).all()


def test_latents_have_unit_size(pictures):
    rows, _ = pictures.base_rows()
    code = fit(pictures)
    latents = code.encode(on_background(pictures.rgba[rows], torch.arange(len(rows))))
    assert latents.square().mean().sqrt().item() == pytest.approx(1, abs=0.01)


def test_muons_update_is_nearly_orthogonal():
    matrices = torch.randn(3, 24, 48, generator=torch.Generator().manual_seed(0))
    sizes = torch.linalg.svdvals(orthogonal(matrices))
    assert sizes.min() > 0.6
    assert sizes.max() < 1.3


def test_a_resumed_training_equals_the_uninterrupted_one(pictures):
    tokenizer = build_tokenizer(pictures.names)
    rows, _ = pictures.base_rows()
    drawings = Drawings(pictures, rows, fit(pictures), tokenizer)
    whole, first = Trainer(RECIPE, len(tokenizer)), Trainer(RECIPE, len(tokenizer))
    for _ in range(2):
        whole.step(drawings)
        first.step(drawings)
    second = Trainer(replace(RECIPE, seed=1), len(tokenizer))
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        whole.step(drawings)
        second.step(drawings)
    for name, weight in whole.average.state_dict().items():
        assert torch.equal(weight, second.average.state_dict()[name]), name


def test_the_rate_warms_up_stays_and_falls_to_zero():
    recipe = Recipe(steps=1000, warmup=10, decay_from=0.5)
    rates = [recipe.rate(step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:500] == [1.0] * 490
    assert rates[500:] == sorted(rates[500:], reverse=True)
    assert rates[-1] < 1e-4
