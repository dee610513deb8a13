"""Reused states are those of the rollout, each with what belongs to its row, and none is older than allowed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rollout_trainer.training.objective.reuse import StatePool
from rollout_trainer.training.objective.states import Inputs, RolledStates, Trail


def a_trail(rows: int, lengths: list[int], mask: bool = False, side: int = 4, offset: float = 0.0) -> Trail:
    """Rows 0, 1, ... with that number in all their tensors; the j-th state of row r is ``r + j / 100``."""

    def filled(*shape: int) -> Tensor:
        return (torch.arange(rows) + offset).reshape(-1, *[1] * len(shape)).expand(rows, *shape).clone()

    row = torch.repeat_interleave(torch.arange(rows), torch.tensor(lengths))
    part = torch.cat([torch.arange(n) for n in lengths]) / 100
    latent = filled(2, side, side)
    ends = RolledStates(
        latent, filled(), latent + 10, latent + 20, latent + 30, {"context": filled(3)},
        filled(1, side, side) if mask else None,
    )  # fmt: skip
    x_hat = latent[row] + part.reshape(-1, 1, 1, 1)
    return Trail(ends, x_hat, row + part + offset, row)


def a_batch(side: int = 4) -> Inputs:
    x = torch.zeros(2, 2, side, side)
    return Inputs(x, torch.zeros(2), x, x, {"context": torch.zeros(2, 3)}, None)


def assert_own(states: RolledStates) -> None:
    """Every state came with its own row's tensors."""
    row = states.sigma.floor()
    assert torch.equal(states.x_hat[:, 0, 0, 0], states.sigma)
    assert torch.equal(states.velocity_source[:, 0, 0, 0], row + 10)
    assert torch.equal(states.x0[:, 0, 0, 0], row + 20)
    assert torch.equal(states.noise[:, 0, 0, 0], row + 30)
    assert torch.equal(states.cond["context"][:, 0], row)
    if states.mask is not None:
        assert torch.equal(states.mask[:, 0, 0, 0], row)


@pytest.mark.parametrize("mask", [False, True])
def test_states_come_with_what_belongs_to_their_row(mask):
    pool = StatePool(3)
    pool.add(5, a_trail(3, [1, 4, 2], mask))
    states = pool.draw(6, 7, a_batch().x, torch.Generator().manual_seed(0))
    assert_own(states)
    assert (states.mask is None) == (not mask)
    assert states.sigma.unique().numel() == 7  # all of them, once
    more = pool.draw(6, 10, a_batch().x, torch.Generator().manual_seed(0))
    assert len(more) == 10
    assert_own(more)


def test_states_are_used_for_so_many_steps_and_no_longer():
    pool, g = StatePool(3), torch.Generator().manual_seed(0)
    assert pool.draw(0, 1, a_batch().x, g) is None
    pool.add(5, a_trail(2, [1, 1]))
    available = [pool.draw(step, 1, a_batch().x, g) is not None for step in (4, 5, 6, 7, 8)]
    assert available == [False, False, True, True, False]
    assert pool.draw(6, 1, a_batch(side=6).x, g) is None  # a batch of another size


def test_states_that_are_too_old_are_let_go():
    """Before the next rollout, so that a step never holds two of them."""
    pool = StatePool(3)
    pool.add(5, a_trail(2, [1, 1]))
    for step in (6, 7):
        pool.forget(step)
        assert pool.trail is not None
    pool.forget(8)
    assert pool.tensors() == {}


def test_all_batches_of_a_step_are_joined_and_older_ones_go():
    pool, g = StatePool(2), torch.Generator().manual_seed(0)
    pool.add(1, a_trail(2, [3, 3], offset=100))
    pool.add(2, a_trail(3, [1, 2, 2]))
    pool.add(2, a_trail(2, [2, 1], offset=3))
    states = pool.draw(3, 8, a_batch().x, g)
    assert_own(states)
    assert sorted(states.sigma.floor().tolist()) == [0, 1, 1, 2, 2, 3, 3, 4]
    pool.add(2, a_trail(1, [1], side=6))
    assert pool.draw(3, 1, a_batch().x, g) is None


def test_without_reuse_nothing_is_kept():
    pool = StatePool(1)
    pool.add(0, a_trail(2, [1, 1]))
    assert pool.tensors() == {}
    assert pool.draw(1, 1, a_batch().x, torch.Generator()) is None


@pytest.mark.parametrize("mask", [False, True])
def test_a_pool_is_saved_and_restored(mask):
    pool, again = StatePool(3), StatePool(3)
    pool.add(5, a_trail(3, [1, 4, 2], mask))
    again.load(pool.tensors(), 5, torch.device("cpu"))
    ours, theirs = (p.draw(7, 5, a_batch().x, torch.Generator().manual_seed(1)) for p in (pool, again))
    assert_own(theirs)
    assert torch.equal(ours.sigma, theirs.sigma)
    assert again.draw(8, 1, a_batch().x, torch.Generator()) is None
    again.load({}, 0, torch.device("cpu"))
    assert again.draw(7, 1, a_batch().x, torch.Generator()) is None


def test_what_belongs_to_a_row_is_held_once():
    """The pool of 3 rows over 50 steps: 150 states, and 3 of everything else."""
    pool = StatePool(4)
    pool.add(0, a_trail(3, [50, 50, 50], mask=True))
    tensors = pool.tensors()
    assert {name for name, value in tensors.items() if len(value) == 150} == {"x_hat", "sigma", "row"}
