"""Weights in fewer bits, and weights that are fetched: the same model, up to rounding, and no more kept than said."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rollout_trainer.training.lora.adapter import Adapter, LoRAConfig
from rollout_trainer.training.lora.file import with_dora_scale
from rollout_trainer.training.models.families import load_diffusers
from rollout_trainer.training.models.stored import FORMS, StoredLinear, store
from rollout_trainer.training.models.swap import Swap
from rollout_trainer.training.plan.ledger import Ledger

DEMO = Path(__file__).resolve().parents[3] / "demo" / "model"
# Largest relative error of a stored matrix of normal numbers: half a step of each form.
ERROR = {"float8": 0.03, "int8": 0.01, "nf4": 0.12}


class Network(nn.Module):
    """Three blocks with a residual stream, as transformers have them."""

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.norm, self.up, self.down = (
                nn.LayerNorm(width),
                nn.Linear(width, 2 * width),
                nn.Linear(2 * width, width),
            )

        def forward(self, x):
            return x + self.down(F.silu(self.up(self.norm(x))))

    def __init__(self, width=256):
        super().__init__()
        self.begin = nn.Linear(8, width)
        self.blocks = nn.ModuleList(self.Block(width) for _ in range(3))
        self.checkpointing = False

    def forward(self, x):
        x = self.begin(x)
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network().requires_grad_(False).eval()


def out_and_gradient(network, x):
    own = x.clone().requires_grad_(True)
    out = network(own)
    (grad,) = torch.autograd.grad(out.square().mean(), own)
    return out.detach(), grad


@pytest.mark.parametrize("form", FORMS)
def test_a_matrix_is_stored_up_to_rounding(form):
    torch.manual_seed(0)
    layer = nn.Linear(256, 128).requires_grad_(False)
    stored = StoredLinear(layer, form)
    error = (stored.weight - layer.weight).norm() / layer.weight.norm()
    assert 0 < error < ERROR[form]
    bits = 8 * (stored.codes.nbytes + stored.scale.nbytes) / layer.weight.numel()
    assert bits < {"float8": 8.2, "int8": 8.2, "nf4": 4.6}[form]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_and_gradient_are_those_of_the_matrix_that_is_stored(form, dtype):
    torch.manual_seed(0)
    stored = StoredLinear(nn.Linear(256, 128).requires_grad_(False).to(dtype), form)
    usual = nn.Linear(256, 128).requires_grad_(False).to(dtype)
    usual.weight.data, usual.bias = stored.weight, stored.bias
    for one, other in zip(
        out_and_gradient(stored, x := torch.randn(4, 9, 256, dtype=dtype)),
        out_and_gradient(usual, x),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_no_matrix_is_kept_for_the_backward_pass(network):
    x = torch.randn(2, 8, requires_grad=True)
    kept = {}
    for form in (None, "int8"):
        own = copy.deepcopy(network)
        if form:
            store(own, form)
        seen = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, seen=seen: seen.append(t.nbytes) or t, lambda t: t
        ):
            own(x)
        kept[form] = sum(n for n in seen if n >= 256 * 512 * 4)
    assert kept[None] >= 6 * 256 * 512 * 4
    assert kept["int8"] == 0


def test_under_autocast_it_computes_in_that_type(network):
    store(network, "float8")
    with torch.autocast("cpu", torch.bfloat16):
        assert network.blocks[0].up(torch.randn(2, 256)).dtype == torch.bfloat16


def test_small_layers_and_those_outside_blocks_stay(network):
    store(network, "int8")
    assert type(network.begin) is nn.Linear
    assert type(network.blocks[0].up) is StoredLinear


def test_a_lora_is_put_on_without_making_a_matrix(network, monkeypatch):
    store(network, "int8")
    made, make = [], StoredLinear.made
    monkeypatch.setattr(StoredLinear, "made", lambda layer, dtype: made.append(dtype) or make(layer, dtype))
    config = LoRAConfig(rank=4, targets=(r"blocks\.\d+\.(up|down)$",))
    adapter = Adapter(network, config)
    assert len(adapter.parameters()) == 12
    assert not made
    assert network.blocks[0].up.base_layer.weight.any()
    adapter.detach()
    Adapter(network, replace(config, kind="dora")).detach()
    assert made  # whose sizes are those of the matrix


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_adapters_train_on_stored_layers(network, kind):
    store(network, "float8")
    adapter = Adapter(network, LoRAConfig(rank=4, kind=kind, targets=(r"blocks\.\d+\.(up|down)$",)))
    x = torch.randn(4, 8)
    before = network(x).detach()
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        (network(x) - before - 1).square().mean().backward()
        optimizer.step()
    assert ((network(x) - before).mean() > 0.05).item()
    state = adapter.state()
    assert all(t.dtype == torch.float32 for t in state.tensors.values())
    adapter.detach()
    torch.testing.assert_close(network(x), before)
    assert with_dora_scale(dict(state.tensors), lambda name: network.get_submodule(name).weight)


# --- swapped ----------------------------------------------------------------------------------------------


def test_a_swapped_network_gives_the_same_bits(network):
    x = torch.randn(3, 8)
    usual = out_and_gradient(network, x)
    network.checkpointing = True
    swap = Swap(network, torch.device("cpu"))
    for one, other in zip(usual, out_and_gradient(network, x), strict=True):
        assert torch.equal(one, other)
    with torch.no_grad():
        assert torch.equal(network(x), usual[0])
    swap.detach()
    assert torch.equal(network(x).detach(), usual[0])
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in network.blocks)


def test_the_backward_pass_computes_with_what_was_fetched(network, monkeypatch):
    # Autograd keeps a norm's weight as it is, a matrix as a view. Only what is fetched has the numbers here.
    x = torch.randn(3, 8)
    network.checkpointing = True
    usual = out_and_gradient(network, x)
    swap = Swap(network, torch.device("cpu"))
    numbers = [[home.tensor.data.clone() for home in homes] for homes in swap.homes]
    monkeypatch.setattr(
        swap, "copies", lambda i: [nn.Parameter(t.clone(), requires_grad=False) for t in numbers[i]]
    )
    for home in (home for homes in swap.homes for home in homes):
        home.tensor.data.fill_(math.nan)
    for one, other in zip(usual, out_and_gradient(network, x), strict=True):
        assert torch.equal(one, other)


def test_one_block_at_a_time_is_away_from_home(network):
    network.checkpointing = True
    swap = Swap(network, torch.device("cpu"))
    block = sum(t.nbytes for t in network.blocks[0].parameters())
    x = torch.randn(3, 8, requires_grad=True)
    with Ledger("cpu") as ledger:
        ledger.leave_out(home.tensor for homes in swap.homes for home in homes)
        ledger.leave_out(network.begin.parameters())
        before = ledger.live
        network(x).square().mean().backward()
    assert block <= ledger.peak - before < 1.6 * block  # of three


def test_adapters_stay_where_they_are(network):
    network.checkpointing = True
    Swap(network, torch.device("cpu"))
    adapter = Adapter(network, LoRAConfig(rank=4, targets=(r"blocks\.\d+\.up$",)))
    network(torch.randn(3, 8)).square().mean().backward()
    assert all(p.grad is not None for p in adapter.parameters())
    adapter.detach()


# --- loaded ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["float8", "int8", "nf4"])
def test_a_folder_loads_with_stored_weights_and_is_another_model(weights):
    full, stored = load_diffusers(DEMO), load_diffusers(DEMO, weights=weights)
    assert any(isinstance(m, StoredLinear) for m in stored.module.modules())
    assert full.fingerprint != stored.fingerprint
    assert full.encoder_fingerprint == stored.encoder_fingerprint
    x, sigma, cond = (
        torch.randn(1, *full.latent_shape(32, 32)),
        torch.tensor([0.5]),
        full.encode_text(["a red cat"]),
    )
    with torch.no_grad():
        one, other = (source.denoiser().predict(x, sigma, cond) for source in (full, stored))
    assert 0 < (one - other).norm() / one.norm() < {"float8": 0.1, "int8": 0.05, "nf4": 0.4}[weights]


def test_swapped_weights_need_checkpointing_to_train(folders):
    source = load_diffusers(folders / "flux", swap=True)
    with pytest.raises(ValueError, match="gradient_checkpointing must be on"), source.denoiser().opened(True):
        pass
    with source.denoiser().opened(True, checkpointing=True):
        pass


def test_a_network_whose_blocks_are_not_repeated_whole_cannot_be_swapped(folders):
    with pytest.raises(ValueError, match="swap_weights must be off"):
        load_diffusers(folders / "sdxl", swap=True)


def test_a_plan_leaves_swapped_weights_alone():
    from rollout_trainer.training.data.dataset import Batch
    from rollout_trainer.training.plan.needs import step_needs
    from rollout_trainer.training.trainer.config import TrainConfig

    needs = []
    for swap in (False, True):
        source = load_diffusers(DEMO, swap=swap)
        before = {name: p.clone() for name, p in source.module.named_parameters()}
        x, cond = torch.randn(1, *source.latent_shape(64, 64)), source.encode_text(["a red cat"])
        lora = LoRAConfig(targets=source.default_lora_targets)
        config = TrainConfig(lora=lora, gradient_checkpointing=True)
        needs.append(step_needs(source, Batch(x, cond, None, torch.arange(1)), config))
        for name, p in source.module.named_parameters():
            assert type(p.data) is torch.Tensor
            assert torch.equal(p, before[name])
    assert needs[0] == needs[1]
