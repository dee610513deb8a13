"""The plan: what is predicted from shapes is what a run takes, and asking for it changes nothing."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_leaves

from rollout_trainer.training.data.dataset import Bucket, LatentDataset
from rollout_trainer.training.lora.adapter import LoRAConfig
from rollout_trainer.training.models.families import load_diffusers
from rollout_trainer.training.objective.config import ReflexFlowConfig, RolloutConfig
from rollout_trainer.training.plan import memory
from rollout_trainer.training.plan.ledger import Ledger, accounted, undisturbed
from rollout_trainer.training.plan.memory import (
    Weights,
    fitted,
    largest_batch,
    plan,
    size_of,
    weights_of,
)
from rollout_trainer.training.plan.needs import Needs, step_needs
from rollout_trainer.training.trainer.config import TrainConfig, resolved
from rollout_trainer.training.trainer.optim import OptimizerConfig
from rollout_trainer.training.trainer.trainer import Trainer

ROOT = Path(__file__).resolve().parents[3]
FAMILIES = ("sd3", "flux", "sd", "sdxl")
SETTINGS = {
    "plain": {},
    "recomputed": {"gradient_checkpointing": True},
    "bf16": {"autocast": "bf16"},
    "accumulated": {"accumulation": 2},
    "averaged, dropout": {"ema_decay": 0.9, "lora": LoRAConfig(rank=8, dropout=0.1)},
    "dora": {"lora": LoRAConfig(rank=8, kind="dora")},
    "adafactor": {"optimizer": OptimizerConfig(name="adafactor")},
}


@pytest.fixture(scope="module")
def source(folders):
    return load_diffusers(folders / "sd3")


def dataset(source, n=4, side=128):
    """Pictures large enough that activations, not weights, are what a step takes."""
    side = side if source.largest_side is None else min(side, source.largest_side)
    latents = torch.randn(n, *source.latent_shape(side, side))
    cond = source.encode_text(["a red cat"] * n)
    names = tuple(map(str, range(n)))
    bucket = Bucket(latents, cond, None, torch.ones(n, dtype=torch.long), names, names, 1)
    return LatentDataset((bucket,), source.encode_text([""]), fingerprint="random")


def settings(source, **changes):
    values = {"batch_size": 4, "lora": LoRAConfig(rank=8)} | changes
    return resolved(TrainConfig(**values), source)


def measured(source, data, config, steps=3):
    """The highest of what is alive in a real run's steps beyond what was before the trainer was made."""
    with Ledger("cpu") as ledger:
        ledger.leave_out([*source.module.parameters(), *source.module.buffers()])
        ledger.leave_out(
            t for t in tree_leaves([b.cond for b in data.buckets]) if isinstance(t, torch.Tensor)
        )
        ledger.leave_out(b.latents for b in data.buckets)
        before = ledger.live
        with Trainer(source, data, config) as trainer:
            for _ in range(steps):
                trainer.step()
        return ledger.peak - before


# --- predicted and measured -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True}], ids=["plain", "recomputed"])
def test_on_shapes_and_in_earnest_the_account_is_the_same(folders, family, changes):
    source = load_diffusers(folders / family)
    config, batch = settings(source, **changes), largest_batch(dataset(source), 4)
    on_shapes, in_earnest = (step_needs(source, batch, config, real) for real in (False, True))
    for field in fields(Needs):
        one, other = getattr(on_shapes, field.name), getattr(in_earnest, field.name)
        assert one == pytest.approx(other, rel=0.01), field.name


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
def test_the_prediction_tracks_what_a_run_takes(source, changes):
    data = dataset(source)
    config = settings(source, **changes)
    predicted = step_needs(source, largest_batch(data, 4), config).peak
    assert predicted == pytest.approx(measured(source, data, config), rel=0.1)


def test_rollouts_reflexflow_and_validation_do_not_raise_the_peak():
    source = load_diffusers(ROOT / "demo" / "model")
    data = dataset(source)
    plain = settings(source)
    rollout = RolloutConfig(
        max_step_offset=6, probability=1.0, sampler="unipc", reflexflow=ReflexFlowConfig("on")
    )
    with_rollouts = replace(plain, rollout=rollout)
    base = measured(source, data, plain)
    assert measured(source, data, with_rollouts) <= 1.05 * base
    with Ledger("cpu") as ledger:
        ledger.leave_out([*source.module.parameters(), *source.module.buffers()])
        before = ledger.live
        with Trainer(source, data, with_rollouts) as trainer:
            trainer.step()
            trainer.validate(data)
        assert ledger.peak - before <= 1.05 * base


# --- nothing is changed ---------------------------------------------------------------------------------


def lora_of(source, data, config):
    with Trainer(source, data, config) as trainer:
        for _ in range(3):
            trainer.step()
        return trainer.adapter.state().tensors


@pytest.mark.parametrize("family", ["flux", "sdxl"])
def test_a_run_after_a_plan_is_bit_for_bit_the_run_without(folders, family):
    source = load_diffusers(folders / family)
    data, config = dataset(source), settings(source, batch_size=1)
    with source.denoiser(None).opened(True, checkpointing=True):
        pass  # diffusers leaves attributes behind
    without = lora_of(source, data, config)
    state, held = torch.get_rng_state(), {id(m): set(vars(m)) for m in source.module.modules()}
    plan(source, data, config, budget=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert {id(m): set(vars(m)) for m in source.module.modules()} == held
    assert all(type(p) is torch.nn.Parameter and not p.requires_grad for p in source.module.parameters())
    after = lora_of(source, data, config)
    assert all(torch.equal(without[name], after[name]) for name in without)


def test_tables_that_a_network_keeps_are_not_those_of_a_plan():
    class Keeps(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 4)
            self.tables, self.last = {}, None

        def forward(self, x):
            if len(x) not in self.tables:
                self.tables[len(x)] = torch.arange(4.0)
            self.last = self.linear(x + self.tables[len(x)])
            return self.last

    network = Keeps()
    with accounted(network, "cpu") as ledger:
        network(torch.ones(3, 4))
        assert ledger.peak > 0
    assert network.tables == {}
    assert network.last is None
    assert network(torch.ones(3, 4)).sum().isfinite()


def test_a_failing_computation_is_undone_too():
    network = torch.nn.Linear(2, 2)

    def fails():
        network.extra = 1
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"), undisturbed(network):
        fails()
    assert not hasattr(network, "extra")


def test_code_that_asks_for_a_value_is_answered():
    network = torch.nn.Linear(2, 2)
    with accounted(network, "cpu"):
        assert float(network(torch.ones(1, 2)).sum()) == 1.0


# --- what is advised --------------------------------------------------------------------------------------


def test_where_there_is_room_nothing_is_advised(source):
    data, config = dataset(source), settings(source)
    found = plan(source, data, config, budget=1 << 40)
    assert found.fits is found.as_is
    assert found.as_is.changes == ()
    assert found.sentence().startswith("needs about ")
    assert ";" not in found.sentence()


def test_the_first_way_that_fits_is_taken_and_its_peak_holds(source):
    data, config = dataset(source), settings(source)
    everything = list(memory.ways(source, largest_batch(data, 4), config, weights_of(source.module)))
    as_is = everything[0][0].peak
    own = [way for way, _ in everything if way.changes == ("gradient_checkpointing",)]
    assert own[0].peak < as_is
    assert own[0].time == pytest.approx(1.5, abs=0.15)
    found = plan(source, data, config, budget=as_is - 1)
    assert found.fits is not None
    assert found.fits.peak < as_is
    weights = size_of([*source.module.parameters(), *source.module.buffers()])
    taken = weights + measured(source, data, found.fits.config)
    assert found.fits.peak == pytest.approx(taken, rel=0.1)


def test_a_smaller_batch_is_accumulated_to_the_same_number_of_samples(source):
    data, config = dataset(source), settings(source, gradient_checkpointing=True, accumulation=3)
    splits = [
        way.config
        for way, _ in memory.ways(source, largest_batch(data, 4), config, weights_of(source.module))
        if any(change.startswith("batch_size") for change in way.changes)
    ]
    assert {(c.batch_size, c.accumulation) for c in splits} == {(2, 6), (1, 12)}


def test_where_nothing_fits_the_least_is_told(source):
    found = plan(source, dataset(source), settings(source), budget=1)
    assert found.fits is None
    assert found.least.peak == min(
        way.peak
        for way, _ in memory.ways(source, largest_batch(dataset(source), 4), settings(source), found.weights)
    )
    assert "; the least is " in found.sentence()


def test_auto_follows_the_plan_and_manual_only_tells(source, monkeypatch):
    data, config = dataset(source), TrainConfig(batch_size=4, lora=LoRAConfig(rank=8))
    as_is = plan(source, data, config, budget=1 << 40).as_is.peak
    monkeypatch.setattr(memory, "memory_of", lambda device, weights: as_is - 1)
    kept, told = fitted(source, data, config, follow=False)
    assert kept == config
    assert told.startswith("needs about ")
    changed, told = fitted(source, data, config, follow=True)
    assert changed != config
    assert "trained with" in told
    assert changed.lora == config.lora
    assert measured(source, data, resolved(changed, source)) + weights_of(source.module).total <= as_is


def test_a_plan_is_made_as_hosts_run_nodes(source):
    data, config = dataset(source), settings(source)
    outside = plan(source, data, config, budget=1 << 20)
    with torch.inference_mode():
        assert plan(source, data, config, budget=1 << 20) == outside


def test_a_small_model_is_not_planned(source, monkeypatch):
    monkeypatch.setattr(memory, "memory_of", lambda device, weights: 1000 * weights)
    monkeypatch.setattr(memory, "plan", lambda *_: pytest.fail("planned"))
    config = settings(source)
    assert fitted(source, dataset(source), config, follow=True) == (config, "")


def test_a_model_that_cannot_be_predicted_trains_unless_auto_was_asked_for(source, monkeypatch, caplog):
    def fails(*_args):
        raise RuntimeError("no shapes here")

    monkeypatch.setattr(memory, "memory_of", lambda device, weights: weights)
    monkeypatch.setattr(memory, "plan", fails)
    config = settings(source)
    assert fitted(source, dataset(source), config, follow=False) == (config, "")
    assert "no shapes here" in caplog.text
    with pytest.raises(RuntimeError, match="memory must be manual"):
        fitted(source, dataset(source), config, follow=True)


def test_the_largest_bucket_is_the_one_that_counts(make_data):
    assert largest_batch(make_data(sizes=(4, 9, 6)), 5).x0.shape == (5, 4, 9, 6)


def test_weights_that_share_memory_count_once():
    network = torch.nn.Linear(4, 4, bias=False)
    tied = torch.nn.Sequential(network, network, torch.nn.Linear(4, 4, bias=False))
    tied[2].weight = network.weight
    assert weights_of(tied).total == 64


def test_weights_by_what_can_be_done_with_them():
    network, large, small = torch.nn.Module(), torch.nn.Module(), torch.nn.Module()
    large.linear, large.norm = torch.nn.Linear(8, 8, bias=False), torch.nn.LayerNorm(8)
    small.linear = torch.nn.Linear(8, 8, bias=False)
    network.blocks = torch.nn.ModuleList([large, small])
    network.out = torch.nn.Linear(8, 2, bias=False)
    found = weights_of(network)
    assert found == Weights(total=256 * 2 + 64 + 64, linear=512, largest=128, block=320, in_blocks=576)
    assert found.stored(0.5) == found.total - 256 + 128
