"""Adapters compute what their merged weights compute, and leave the network as they found it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from rollout_trainer.training.lora import adapter as lora
from rollout_trainer.training.lora.adapter import (
    Adapter,
    AdapterKind,
    AdapterState,
    LoRAConfig,
    attached,
    target_modules,
)

KINDS = get_args(AdapterKind)
LINEAR, CONV, EVERYTHING = (r"to_[qv]$", r"mlp\.0"), (r"conv", r"down\.1"), (r".",)


class Block(nn.Module):
    """Linear and convolution layers of several shapes, and neighbours that an adapter must not touch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 12, 3, padding=1)
        self.down = nn.Sequential(nn.SiLU(), nn.Conv2d(12, 8, 1, stride=2, bias=False))
        self.to_q = nn.Linear(8, 6)
        self.to_v = nn.Linear(8, 6, bias=False)
        self.mlp = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Dropout(0.5), nn.Linear(16, 4))
        self.norm = nn.LayerNorm(8)
        self.register_buffer("table", torch.arange(3.0))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.down(self.conv(x)).flatten(2).mT)  # [B, 4, h, w] -> [B, h w, 8]
        return self.mlp(self.to_q(h) * self.to_v(h).tanh())


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.ModuleDict({"blocks": nn.ModuleList([Block(), Block()])}).to(dtype).eval()


def run(module: nn.Module, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)
    with torch.no_grad():
        return torch.cat([block(x) for block in module["blocks"]])


def trained(adapter: Adapter, seed: int = 11) -> None:
    """Give every weight of the adapter a value of its own: fresh adapters change nothing."""
    generator = torch.Generator().manual_seed(seed)
    for p in adapter.parameters():
        p.data += torch.randn(p.shape, generator=generator) * 0.1


def anatomy(module: nn.Module) -> dict[str, Any]:
    """All that is to be found out about a network, tensors by storage and content."""

    def plain(value: object) -> object:
        return id(value) if isinstance(value, (Tensor, nn.Module)) or callable(value) else repr(value)

    parts: dict[str, Any] = {}
    for name, m in module.named_modules():
        own = {k: plain(v) for k, v in vars(m).items() if not isinstance(v, dict)}
        tables = {k: {n: plain(v) for n, v in t.items()} for k, t in vars(m).items() if isinstance(t, dict)}
        parts[name] = (id(m), type(m), own, [*tables], {k: [*t.items()] for k, t in tables.items()})
    tensors = {
        name: (id(t), t.data_ptr(), t.dtype, t.requires_grad, t.grad is None, t.detach().clone())
        for name, t in [*module.named_parameters(), *module.named_buffers()]
    }
    return {"parts": parts, "tensors": tensors}


def assert_same_anatomy(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["parts"] == expected["parts"]
    assert found["tensors"].keys() == expected["tensors"].keys()
    for name, (*facts, value) in found["tensors"].items():
        *expected_facts, expected_value = expected["tensors"][name]
        assert facts == expected_facts, name
        assert torch.equal(value, expected_value), name


@pytest.fixture
def module() -> nn.Module:
    """A network with training flags and requires_grad of all sorts."""
    net = network(torch.float32).train()
    net["blocks"][0].mlp.eval()
    net["blocks"][1].to_q.eval()
    net["blocks"][0].conv.weight.requires_grad_(False)
    net["blocks"][1].norm.bias.requires_grad_(False)
    return net


# --- what it computes ---------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [LINEAR, CONV, EVERYTHING], ids=["linear", "conv", "everything"])
@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_compute_what_the_adapter_does(kind, targets):
    net = network()
    base = run(net)
    adapter = Adapter(net, LoRAConfig(kind, rank=3, alpha=2.0, targets=targets))
    trained(adapter)
    for p in adapter.parameters():
        p.data = p.data.double()
    beside = run(net)
    for layer in net.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
    merged = run(net)
    adapter.detach()

    assert (beside - base).abs().max() > 1e-3
    torch.testing.assert_close(merged, beside, rtol=1e-10, atol=1e-12)
    assert torch.equal(run(net), merged)  # merged weights stay in the plain layers


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_changes_nothing(kind):
    net = network(torch.float32)
    base = run(net, torch.float32)
    adapter = Adapter(net, LoRAConfig(kind, rank=2, targets=EVERYTHING))
    fresh = run(net, torch.float32)
    trained(adapter)
    with adapter.disabled():
        disabled = run(net, torch.float32)

    # Not bit for bit: dora divides by a norm and multiplies by it.
    torch.testing.assert_close(fresh, base, rtol=1e-5, atol=1e-6)
    assert torch.equal(disabled, base)
    assert not torch.equal(run(net, torch.float32), base)


def test_alpha_over_rank_is_the_scale():
    net = network()
    base = run(net)
    states = []
    for alpha in (4.0, 8.0):
        adapter = Adapter(net, LoRAConfig(rank=4, alpha=alpha, targets=(r"blocks\.1\.mlp\.3",)))
        trained(adapter)
        states.append(run(net) - base)
        adapter.detach()
    torch.testing.assert_close(2 * states[0], states[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_is_float32_over_a_half_precision_base(kind, dtype):
    net = network(dtype)
    adapter = Adapter(net, LoRAConfig(kind, rank=2, targets=EVERYTHING))
    trained(adapter)
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(5)).to(dtype)
    output = net["blocks"][0](x)
    output.float().square().mean().backward()

    assert output.dtype == dtype
    assert all(p.dtype == torch.float32 for p in adapter.parameters())
    assert all(t.dtype == torch.float32 for t in adapter.state().tensors.values())
    own = [p for name, p in net.named_parameters() if p.requires_grad and name.startswith("blocks.0")]
    assert own
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in own)
    adapter.detach()
    assert {p.dtype for p in net.parameters()} == {dtype}
    assert all(p.grad is None for p in net.parameters())


def test_dora_dropout_on_half_precision_convolutions_is_refused_before_training():
    before = anatomy(net := network(torch.bfloat16))
    with pytest.raises(ValueError, match=r"dropout must be 0 for a dora adapter .* got 0.1 on blocks.0.conv"):
        Adapter(net, LoRAConfig("dora", rank=2, dropout=0.1, targets=EVERYTHING))
    assert_same_anatomy(anatomy(net), before)
    adapter = Adapter(net, LoRAConfig("dora", rank=2, dropout=0.1, targets=LINEAR))
    with adapter.dropout():
        assert run(net, torch.bfloat16).isfinite().all()


def test_dropout_is_active_in_its_block_only():
    net = network(torch.float32)
    adapter = Adapter(net, LoRAConfig(rank=4, dropout=0.5, targets=LINEAR))
    trained(adapter)
    quiet = run(net, torch.float32)
    with adapter.dropout():
        assert not torch.equal(run(net, torch.float32), quiet)
    assert torch.equal(run(net, torch.float32), quiet)
    with pytest.raises(KeyError), adapter.dropout():
        raise KeyError
    assert torch.equal(run(net, torch.float32), quiet)


# --- what it leaves behind ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_detach_leaves_the_network_as_it_was(kind, module):
    before = anatomy(module)
    adapter = Adapter(module, LoRAConfig(kind, rank=2, dropout=0.1, targets=EVERYTHING))
    trained(adapter)
    with adapter.dropout():
        module["blocks"][0](torch.zeros(1, 4, 6, 6)).sum().backward()
    adapter.detach()
    assert_same_anatomy(anatomy(module), before)


def fail_with_adapter(module: nn.Module) -> None:
    assert isinstance(module["blocks"][0].to_q, BaseTunerLayer)
    raise ZeroDivisionError


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_inside_attached_leaves_the_network_as_it_was(kind, module):
    state = state_of(kind)
    before = anatomy(module)
    with pytest.raises(ZeroDivisionError), attached(module, state):
        fail_with_adapter(module)
    assert_same_anatomy(anatomy(module), before)
    with attached(module, None):
        assert_same_anatomy(anatomy(module), before)


def test_an_adapter_that_does_not_fit_leaves_the_network_as_it_was(module):
    before = anatomy(module)
    state = state_of("lora")
    wrong = AdapterState(LoRAConfig(rank=5, targets=EVERYTHING), state.tensors)
    with pytest.raises(ValueError, match="must fit the model"), attached(module, wrong):
        pass
    assert_same_anatomy(anatomy(module), before)


def test_a_failing_injection_leaves_the_network_as_it_was(module, monkeypatch):
    before = anatomy(module)
    real: Callable[..., nn.Module] = lora.inject_adapter_in_model

    def fails_at_the_end(*args: Any, **kwargs: Any) -> nn.Module:
        real(*args, **kwargs)
        raise TypeError("no adapter for this layer")

    monkeypatch.setattr(lora, "inject_adapter_in_model", fails_at_the_end)
    with pytest.raises(TypeError, match="no adapter for this layer"):
        Adapter(module, LoRAConfig(targets=EVERYTHING))
    assert_same_anatomy(anatomy(module), before)


def test_one_adapter_at_a_time(module):
    adapter = Adapter(module, LoRAConfig(rank=2, targets=LINEAR))
    with pytest.raises(RuntimeError, match="must carry no adapter"):
        Adapter(module, LoRAConfig(rank=2, targets=CONV))
    adapter.detach()
    Adapter(module, LoRAConfig(rank=2, targets=CONV)).detach()


def test_only_the_adapter_is_trained(module):
    adapter = Adapter(module, LoRAConfig(rank=2, targets=LINEAR))
    trainable = {id(p) for p in module.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in adapter.parameters()}
    assert len(adapter.parameters()) == 2 * 3 * 2  # A and B of three layers in two blocks


# --- which layers -------------------------------------------------------------------------------


def test_targets_are_searched_in_module_names(module):
    assert lora.target_modules(module, (r"mlp\.3$", r"blocks\.0\.to_q")) == [
        "blocks.0.to_q",
        "blocks.0.mlp.3",
        "blocks.1.mlp.3",
    ]


def test_a_module_whose_name_begins_like_a_target_gets_no_adapter():
    net = nn.ModuleDict({"fc": nn.Linear(2, 2), "xfc": nn.Linear(2, 2), "fc1": nn.Linear(2, 2)})
    adapter = Adapter(net, LoRAConfig(rank=1, targets=("^fc$",)))
    assert [name for name, m in net.named_modules() if isinstance(m, BaseTunerLayer)] == ["fc"]
    adapter.detach()


def test_a_pattern_that_finds_nothing_names_what_is_near(module):
    with pytest.raises(ValueError, match=r"got 'to_qq' which matches none of 12") as caught:
        Adapter(module, LoRAConfig(targets=(r"to_v", "to_qq")))
    near = str(caught.value).split("near names: ")[1].split(", ")
    assert "to_q" in near[0]
    assert len({n.split(".", 2)[2] for n in near}) == len(near)  # one for all blocks
    with pytest.raises(ValueError, match="near names: none"):
        Adapter(nn.ReLU(), LoRAConfig(targets=("to_q",)))


def test_a_broken_pattern_is_told_apart(module):
    before = anatomy(module)
    with pytest.raises(ValueError, match=r"must be regular expressions, got 'to_\(q'") as caught:
        Adapter(module, LoRAConfig(targets=("to_(q",)))
    assert isinstance(caught.value.__cause__, lora.re.error)
    assert_same_anatomy(anatomy(module), before)


class Packed(torch.Tensor):
    """Weights of a layout of their own, as those of quantised files."""


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "lora"])
@pytest.mark.parametrize("stored", ["float8", "packed"])
def test_kinds_that_compute_with_the_weight_refuse_quantised_ones_in_one_line(kind, stored):
    module = network(torch.float32).requires_grad_(False)
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            weight = layer.weight.data
            packed = weight.to(torch.float8_e4m3fn) if stored == "float8" else weight.as_subclass(Packed)
            layer.weight = nn.Parameter(packed, requires_grad=False)
    before = anatomy(module)
    with pytest.raises(
        ValueError, match=f"kind must be lora on a model with quantised weights, got {kind}"
    ) as caught:
        Adapter(module, LoRAConfig(kind, rank=2, targets=LINEAR))
    assert "\n" not in str(caught.value)
    assert_same_anatomy(anatomy(module), before)


# --- weights in and out -------------------------------------------------------------------------


def state_of(kind: AdapterKind, seed: int = 11, **config: Any) -> AdapterState:
    """The state of a trained adapter on a network of its own."""
    adapter = Adapter(network(), LoRAConfig(kind, **{"rank": 2, "targets": EVERYTHING} | config))
    trained(adapter, seed)
    return adapter.state()


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_gives_the_same_network_again(kind):
    net = network()
    adapter = Adapter(net, LoRAConfig(kind, rank=2, targets=EVERYTHING))
    trained(adapter)
    state, expected = adapter.state(), run(net)
    frozen = {name: t.clone() for name, t in state.tensors.items()}
    trained(adapter, seed=12)  # the state is a copy
    adapter.detach()

    with attached(net, state):
        assert torch.equal(run(net), expected)
    other = Adapter(net, state.config, seed=7)
    other.load(state)
    again = other.state()
    assert again.config == state.config
    assert again.tensors.keys() == frozen.keys()
    assert all(torch.equal(again.tensors[name], frozen[name]) for name in frozen)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 3},
        {"targets": LINEAR},
        {"kind": "loha"},
    ],
    ids=lambda w: next(iter(w)),
)
def test_an_adapter_of_another_shape_is_refused(wrong):
    adapter = Adapter(network(), LoRAConfig(rank=2, targets=EVERYTHING))
    before = adapter.state()
    with pytest.raises(ValueError, match=r"the adapter file must fit the model, but blocks\.\S+ does not"):
        adapter.load(state_of(**{"kind": "lora"} | wrong))
    after = adapter.state()
    assert all(torch.equal(after.tensors[name], t) for name, t in before.tensors.items())


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_the_first_weights_and_nothing_else_does(kind):
    def first_weights(seed: int) -> dict[str, Tensor]:
        return dict(Adapter(network(), LoRAConfig(kind, rank=2, targets=EVERYTHING), seed).state().tensors)

    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one = first_weights(4)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    same, other = first_weights(4), first_weights(5)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "pattern",
    [
        r"^(.+)(.+)(.+)(.+)(.+)(.+)\6\5\4\3\2\1[A-Z]$",
        r"^(\w+)(.*)(\w+)(.*)(\w+)(.*)(\w+)\1.\3.\5.\7[A-Z]",
    ],
)
def test_an_expression_that_takes_longer_than_the_universe_is_given_up(pattern, monkeypatch):
    """No engine is quick at references backwards: the time limit is what stops these."""
    monkeypatch.setattr("rollout_trainer.training.lora.adapter.MATCH_SECONDS", 0.2)
    network = nn.Module()
    for i in range(20):
        network.add_module(f"transformer_blocks_{i}_attn_to_q_projection_of_everything", nn.Linear(2, 2))
    begun = time.process_time()
    with pytest.raises(
        ValueError, match=r"targets must be found in 0\.2 s, got .*, which takes longer"
    ) as told:
        target_modules(network, (pattern,))
    assert time.process_time() - begun < 5
    assert "\n" not in str(told.value)
