"""What travels on a socket: a base and an adapter that is on it only while it is used."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from rollout_trainer.training.lora.adapter import Adapter, LoRAConfig
from rollout_trainer.training.models.source import Denoiser, LoadedModel


class Source(Denoiser):
    device = torch.device("cpu")

    def __init__(self):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.module = (
                nn.Sequential(nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 4)).requires_grad_(False).eval()
            )

    def denoiser(self, dtype=None):
        return self

    def opened(self, training=False, checkpointing=False):
        return nullcontext()

    def predict(self, x, sigma, cond):
        return self.module(x)


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def adapted(source, seed):
    adapter = Adapter(source.module, LoRAConfig(rank=2, alpha=2.0, targets=("0", "2")), seed)
    with torch.no_grad():
        for p in adapter.parameters():
            p.add_(0.1 * (seed + 1))
    state = adapter.state()
    adapter.detach()
    return LoadedModel(source, state)


def run(model):
    with model.denoiser() as denoiser:
        return denoiser.predict(X, torch.ones(3), {})


def test_branches_of_one_base_do_not_see_each_other():
    source = Source()
    base, one, two = LoadedModel(source), adapted(source, 1), adapted(source, 2)
    first = [run(m) for m in (base, one, two)]
    again = [run(m) for m in (two, base, one)]
    assert all(torch.equal(a, b) for a, b in zip(first, [again[1], again[2], again[0]], strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[2])


def test_the_base_is_as_it_was_also_after_an_error():
    source = Source()
    before = {name: value.clone() for name, value in source.module.state_dict().items()}
    modules = list(source.module.modules())

    def fail():
        with adapted(source, 1).denoiser():
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert list(source.module.modules()) == modules
    after = source.module.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_with_adapter_leaves_the_original_alone():
    source = Source()
    base, one = LoadedModel(source), adapted(source, 1)
    assert torch.equal(run(base.with_adapter(one.adapter)), run(one))
    assert base.adapter is None
    with pytest.raises(AttributeError):
        base.adapter = one.adapter
