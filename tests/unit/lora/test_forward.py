"""The adapter's forward against peft's: the same numbers and gradients, and less kept for the backward pass."""

import pytest
import torch
from peft.tuners.lora import Linear
from torch import nn

from rollout_trainer.training.lora.adapter import Adapter, LoRAConfig
from rollout_trainer.training.lora.forward import SMALL, LowRank, is_product

SHAPES = [(3, 16), (2, 5, 16), (2, 3, 4, 16)]


def adapted(dtype=torch.float32, dropout=0.0, seed=0):
    """A layer with an adapter that does something, and the adapter."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(16, 24)).to(dtype)
    adapter = Adapter(module, LoRAConfig(rank=4, alpha=6.0, dropout=dropout, targets=("0",)))
    with torch.no_grad():
        for p in adapter.parameters():
            p.normal_()
    return module, adapter


def answers(module, adapter, x):
    """Output, and the gradients of x, A and B, of one backward pass."""
    x = x.clone().requires_grad_()
    y = module(x)
    return y.detach(), *torch.autograd.grad(y.square().sum(), [x, *adapter.parameters()])


@pytest.fixture
def by_peft(monkeypatch):
    """``by_peft(module)``: peft's own forward from here on."""

    def restore(module):
        for layer in module.modules():
            if isinstance(layer, Linear):
                monkeypatch.setattr(layer, "__class__", Linear)

    return restore


@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_and_gradients_are_those_of_peft(shape, by_peft):
    module, adapter = adapted()
    x = torch.randn(shape)
    ours = answers(module, adapter, x)
    by_peft(module)
    for own, theirs in zip(ours, answers(module, adapter, x), strict=True):
        assert own.dtype == theirs.dtype
        assert (own - theirs).norm() < 1e-6 * theirs.norm()


def test_dropout_draws_as_peft_draws(by_peft):
    module, adapter = adapted(dropout=0.5)
    x = torch.randn(2, 5, 16)
    with adapter.dropout():
        torch.manual_seed(1)
        ours = answers(module, adapter, x)
        by_peft(module)
        torch.manual_seed(1)
        theirs = answers(module, adapter, x)
    for own, other in zip(ours, theirs, strict=True):
        assert (own - other).norm() < 1e-6 * other.norm()


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_a_half_precision_base_is_answered_within_its_rounding(dtype, rounding):
    module, adapter = adapted(dtype)
    x = torch.randn(64, 16).to(dtype)
    y, *gradients = answers(module, adapter, x)
    layer = module[0]
    weights = (layer.base_layer.weight, layer.lora_A.default.weight, layer.lora_B.default.weight)
    w, a, b = (t.detach().double() for t in weights)
    exact = x.double() @ (w + 1.5 * b @ a).T + layer.base_layer.bias.double()
    assert y.dtype == dtype
    assert (y.double() - exact).norm() / exact.norm() < 2 * rounding
    assert [g.dtype for g in gradients] == [dtype, torch.float32, torch.float32]


def test_few_rows_over_a_bfloat16_base_are_answered_in_float32_to_the_last_rounding():
    """On a CPU; the update itself is then as exact as peft's."""
    module, adapter = adapted(torch.bfloat16)
    x = torch.randn(3, 5, 16).to(torch.bfloat16)
    assert x.numel() < SMALL
    y, *gradients = answers(module, adapter, x)
    layer = module[0]
    a, b = (w.default.weight.detach() for w in (layer.lora_A, layer.lora_B))
    update = layer.scaling["default"] * (x.float() @ a.T @ b.T)
    torch.testing.assert_close(y, (layer.base_layer(x) + update).to(torch.bfloat16), rtol=2**-8, atol=1e-6)
    assert [g.dtype for g in gradients] == [torch.bfloat16, torch.float32, torch.float32]


def kept(module, x):
    """Bytes that a forward pass keeps for the backward pass, each storage once."""
    seen = {}

    def note(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = module(x)
    return sum(seen.values()), y  # y lives on, so that no storage is counted under another's address


def test_less_is_kept_over_a_bfloat16_base_than_by_peft(by_peft):
    module, _ = adapted(torch.bfloat16)
    x = torch.randn(4096, 16).to(torch.bfloat16).requires_grad_()
    ours, _ = kept(module, x)
    by_peft(module)
    theirs, _ = kept(module, x)
    assert ours < 0.7 * theirs


def test_the_gradients_are_those_of_the_formula():
    torch.manual_seed(0)
    x, down, up = (torch.randn(*shape, dtype=torch.float64) for shape in ((5, 6), (2, 6), (4, 2)))
    weight, bias = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, dtype=torch.float64)

    def output(x, down, up):
        return LowRank.apply(x, weight, bias, down, up, 1.5)

    torch.testing.assert_close(output(x, down, up), x @ (weight + 1.5 * up @ down).T + bias)
    assert torch.autograd.gradcheck(output, [t.requires_grad_() for t in (x, down, up)])


def test_a_base_that_is_watched_or_does_more_is_called():
    module, adapter = adapted()
    base, x, seen = module[0].base_layer, torch.randn(2, 5, 16), []
    alone = answers(module, adapter, x)
    assert is_product(base, x)
    with base.register_forward_pre_hook(lambda _layer, args: seen.append(args[0].shape)):
        assert not is_product(base, x)
        for own, watched in zip(alone, answers(module, adapter, x), strict=True):
            torch.testing.assert_close(own, watched)
    assert seen == [x.shape]
    base.forward = lambda x: torch.zeros(*x.shape[:-1], 24)
    assert not is_product(base, x)
    with torch.no_grad():
        torch.testing.assert_close(module(x) + base.__class__.forward(base, x), alone[0])


def test_switched_off_it_is_the_base():
    module, adapter = adapted()
    x = torch.randn(2, 5, 16)
    with adapter.disabled():
        ours = module(x)
    assert torch.equal(ours, module[0].base_layer(x))


def test_merged_it_is_the_merged_layer():
    module, _ = adapted()
    x = torch.randn(2, 5, 16)
    beside = module(x)
    module[0].merge()
    torch.testing.assert_close(module(x), beside)


def test_double_precision_is_left_to_peft():
    module, _ = adapted(torch.float64)
    x = torch.randn(2, 16, dtype=torch.float64)
    assert torch.equal(module(x), Linear.forward(module[0], x))


def test_autocast_computes_as_torch_says():
    module, adapter = adapted()
    x = torch.randn(2, 5, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y, *gradients = answers(module, adapter, x)
    assert y.dtype == torch.bfloat16
    assert {g.dtype for g in gradients} == {torch.float32}
