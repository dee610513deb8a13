"""Conditioning of different sizes: what goes in comes out, however rows are joined, exchanged and selected."""

import pytest
import torch

from rollout_trainer.training.conditioning import (
    alike,
    controls_of,
    joined,
    role,
    select,
    separated,
    text_of,
)
from rollout_trainer.training.objective.states import drop_captions


def row(length, **more):
    g = torch.Generator().manual_seed(length)
    return {"context": torch.randn(1, length, 4, generator=g), **more}


ROWS = [
    row(3, pooled=torch.ones(1, 2), guidance=torch.tensor([3.5])),
    row(5, pooled=torch.zeros(1, 2)),
    row(1, guidance=torch.tensor([1.0])),
]


def same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_rows_come_back_as_they_were():
    for given, found in zip(ROWS, separated(joined(ROWS)), strict=True):
        same(given, found)


def test_selected_rows_of_joined_joins_come_back():
    both = joined([joined(ROWS[:2]), joined(ROWS[1:])])  # padded twice, to different sizes
    for i, found in zip((3, 0, 2), separated(select(both, torch.tensor([3, 0, 2]))), strict=True):
        same([*ROWS[:2], *ROWS[1:]][i], found)


def test_conditioning_of_one_size_is_not_touched():
    cond = {"context": torch.randn(3, 2, 4)}
    (found, other) = alike([cond, {"context": torch.randn(1, 2, 4)}])
    assert found["context"] is cond["context"]
    assert found.keys() == other.keys() == {"context"}


def test_a_dropped_caption_is_the_empty_one_with_its_own_length():
    cond, empty = alike([joined(ROWS), row(2)])
    dropped = drop_captions(cond, empty, 1.0, torch.Generator())
    for given, found in zip(ROWS, separated(dropped), strict=True):
        same({**row(2), **controls_of(given)}, found)


def test_dropout_exchanges_text_and_never_a_control():
    pictures = {"reference_latents/0": torch.rand(1, 4, 3, 2), "reference_latents/1": torch.rand(1, 4, 2, 2)}
    one, other = row(3, **pictures), row(5, **{"reference_latents/0": torch.rand(1, 4, 2, 5)})
    cond, empty = joined([one, other]), row(1)
    text, empty = alike([text_of(cond), empty])
    found = separated(drop_captions({**text, **controls_of(cond)}, empty, 1.0, torch.Generator()))
    same({**row(1), **pictures}, found[0])
    same({**row(1), **controls_of(other)}, found[1])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cross_attn", "text"),
        ("context.shape", "text"),
        ("pooled_output", "text"),
        ("attention_mask_mt5xl", "text"),
        ("conditioning_llama3", "text"),
        ("t5xxl_ids/vector", "text"),
        ("reference_latents/0", "control"),
        ("concat_latent_image", "control"),
        ("clip_vision_output/vision:image_embeds", "control"),
        ("context_latents", "control"),
        ("denoise_mask", "control"),
        ("guidance", "control"),
        ("frame_rate", "control"),
    ],
)
def test_roles(name, expected):
    assert role(name) == expected


def test_different_axes_are_refused():
    with pytest.raises(ValueError, match="context must have the same axes"):
        joined([row(2), {"context": torch.zeros(1, 2)}])
