"""Recomputation and writes in place, against the same network written without them: the same gradients."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from rollout_trainer.training.models.differentiable import (
    blocks,
    given_copies,
    overwritten,
    recomputed,
    writes_allowed,
)
from rollout_trainer.training.plan.ledger import Ledger


class Block(nn.Module):
    """Two residual branches behind norms, which keep their inputs for the backward pass."""

    def __init__(self, in_place):
        super().__init__()
        self.norm = nn.LayerNorm(8, elementwise_affine=False)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.in_place = in_place

    def forward(self, x, *, gate):
        for layer in (self.first, self.second):
            branch = layer(self.norm(x)).tanh() * gate["value"]
            if self.in_place:
                x += branch
            else:
                x = x + branch
        return x


class Network(nn.Module):
    def __init__(self, in_place):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.inp = nn.Linear(8, 8)
            self.levels = nn.ModuleList([nn.Sequential(Block(in_place)), Block(in_place), Block(in_place)])
            self.act = nn.Sequential(nn.SiLU(), nn.Linear(8, 8))
        self.double().requires_grad_(False)
        for block in (self.levels[1], self.levels[2]):  # the first block and its inputs need no gradient
            block.second.weight.requires_grad_(True)

    def forward(self, x):
        gate = {"value": torch.full((1,), 0.7, dtype=x.dtype)}
        x = self.inp(x)
        x = self.levels[0][0](x, gate=gate)
        for block in list(self.levels)[1:]:
            x = block(x, gate=gate)
        return self.act(x)


X = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def gradients(network):
    network(X).square().mean().backward()
    found = [p.grad.clone() for p in network.parameters() if p.requires_grad]
    network.zero_grad()
    return found


def watched(network):
    return given_copies(overwritten(network, lambda: network(X[:1])))


def test_blocks_are_the_outermost_members_of_lists_that_have_parts():
    network = Network(False)
    assert blocks(network) == [network.levels[0][0], network.levels[1], network.levels[2]]


def test_recomputation_changes_no_gradient():
    network = Network(False)
    plain = gradients(network)
    with recomputed(network):
        again = gradients(network)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_layers_whose_input_is_overwritten_are_found():
    network = Network(True)
    norms = [block.norm for block in blocks(network)]
    assert overwritten(network, lambda: network(X)) == norms
    assert overwritten(Network(False), lambda: network(X)) == []


def test_without_copies_autograd_refuses():
    with pytest.raises(RuntimeError, match="inplace"):
        gradients(Network(True))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_with_copies_the_gradients_are_those_of_the_network_without_writes(checkpointing):
    network = Network(True)
    with watched(network):
        if checkpointing:
            with recomputed(network):
                found = gradients(network)
        else:
            found = gradients(network)
    assert all(torch.equal(a, b) for a, b in zip(gradients(Network(False)), found, strict=True))


class Bare(nn.Module):
    """A residual stream that is written into after a bare function has kept it: no layer's input."""

    def __init__(self, in_place):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.blocks = nn.ModuleList([nn.ModuleDict({"mix": nn.Linear(8, 8)}) for _ in range(3)])
        self.double().requires_grad_(False)
        self.blocks[0]["mix"].weight.requires_grad_(True)
        self.in_place = in_place
        for block in self.blocks:
            block.forward = lambda x, mix=block["mix"]: self.step(x, mix)

    def step(self, x, mix):
        branch = mix(torch.nn.functional.rms_norm(x, (8,))).tanh()
        if not self.in_place:
            return x + branch
        x += branch
        return x

    def forward(self, x):
        x = x * 1
        for block in self.blocks:
            x = block.forward(x)
        return x


@pytest.mark.parametrize("network", [Network, Bare])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_where_writes_are_allowed_the_gradients_are_those_without_writes(network, checkpointing):
    found = None
    own = network(True)
    with recomputed(own) if checkpointing else nullcontext(), writes_allowed(own, lambda: own(X[:1])):
        found = gradients(own)
    assert all(torch.equal(a, b) for a, b in zip(gradients(network(False)), found, strict=True))


@pytest.mark.parametrize(
    ("network", "slow"), [(Network(True), False), (Bare(True), True), (Bare(False), False)]
)
def test_every_operation_is_watched_only_where_copies_are_not_enough(network, slow, monkeypatch):
    entered = []
    monkeypatch.setattr(
        torch.autograd.graph, "allow_mutation_on_saved_tensors", lambda: nullcontext(entered.append(1))
    )
    with writes_allowed(network, lambda: network(X[:1])):
        assert bool(entered) == slow


def test_other_errors_of_a_backward_pass_are_not_swallowed():
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x

        @staticmethod
        def backward(ctx, grad):
            raise RuntimeError("no formula")

    network = Network(False)
    with (
        pytest.raises(RuntimeError, match="no formula"),
        writes_allowed(network, lambda: Broken.apply(network(X))),
    ):
        pass


def test_recomputation_without_copies_is_refused_and_not_wrong_in_silence():
    network = Network(True)
    with recomputed(network), pytest.raises(RuntimeError, match="inplace"):
        gradients(network)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_looking_keeps_nothing(checkpointing):
    """A tensor that is kept for a backward pass and then overwritten would hang on itself, and the graph on it."""
    network, many = Network(True), X.repeat(256, 1, 1)
    with recomputed(network) if checkpointing else nullcontext(), Ledger("cpu") as ledger:
        before = ledger.live
        with writes_allowed(network, lambda: network(many)):
            assert ledger.live - before < 2 * many.nbytes


def test_looking_holds_none_of_what_layers_read():
    network, many = Network(True), X.repeat(256, 1, 1)
    with torch.no_grad(), Ledger("cpu") as ledger:
        network(many)
        alone = ledger.peak
        ledger.restart()
        assert overwritten(network, lambda: network(many))
        assert ledger.peak - alone < many.nbytes


def test_everything_is_undone():
    network = Network(True)
    with pytest.raises(KeyError), recomputed(network), watched(network):
        raise KeyError
    for module in network.modules():
        assert "forward" not in vars(module)
        assert not module._forward_pre_hooks


class Dropping(Network):
    """The same with dropout, which draws from the global generator as an adapter's does."""

    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.5)


@pytest.mark.parametrize("in_place", [False, True])
def test_looking_draws_no_random_number(in_place):
    """A run that is resumed looks again: its dropout masks must be those of the uninterrupted one."""
    network = Dropping(in_place)
    torch.manual_seed(3)
    expected = torch.random.get_rng_state()
    with writes_allowed(network, lambda: network(X[:1])):
        assert torch.equal(torch.random.get_rng_state(), expected)
