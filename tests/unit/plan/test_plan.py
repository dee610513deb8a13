"""The plan: what is predicted from shapes is what a run takes, and asking for it changes nothing."""

import copy
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import lru_cache, wraps
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from rollout_trainer.training.data.dataset import Bucket, LatentDataset
from rollout_trainer.training.lora.adapter import LoRAConfig
from rollout_trainer.training.models import visits
from rollout_trainer.training.models.families import load_diffusers
from rollout_trainer.training.models.visits import decoding, weights_in
from rollout_trainer.training.objective.config import ReflexFlowConfig, RolloutConfig
from rollout_trainer.training.pictures.sampling import Drawing, Prompts
from rollout_trainer.training.plan import memory
from rollout_trainer.training.plan.ledger import Ledger, accounted, moved, undisturbed
from rollout_trainer.training.plan.memory import (
    Previews,
    Weights,
    fitted,
    largest_batch,
    plan,
    size_of,
    weights_of,
)
from rollout_trainer.training.plan.needs import Needs, decoding_needs, drawing_needs, step_needs
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


def measured(source, data, config, steps=3, then=None):
    """The highest of what is alive in a real run's steps beyond what was before the trainer was made.

    `then` is done with the trainer after them.
    """
    with Ledger("cpu") as ledger:
        ledger.leave_out(weights_in([source.module, source.vae]))
        ledger.leave_out(
            t for t in tree_leaves([b.cond for b in data.buckets]) if isinstance(t, torch.Tensor)
        )
        ledger.leave_out(b.latents for b in data.buckets)
        before = ledger.live
        with Trainer(source, data, config) as trainer:
            for _ in range(steps):
                trainer.step()
            if then is not None:
                then(trainer)
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


# --- pictures that are drawn while it trains --------------------------------------------------------------


def test_films_and_prompts_do_not_raise_the_peak(demo):
    source = demo
    data, config = dataset(source, n=8), settings(source, batch_size=8, preview_every=1)
    drawing = Drawing(source, Prompts(("a cat",) * 32, steps=2, cfg=2.0))
    base = measured(source, data, config)

    def drawn(trainer):
        assert len(trainer.take_film().frames) == 6
        assert trainer.draw(drawing).shape == (32, 3, 128, 128)

    assert measured(source, data, config, then=drawn) <= 1.05 * base


def test_prompts_are_drawn_in_parts_of_a_batch(source):
    data, config = dataset(source, side=32), settings(source, batch_size=4)
    forwards = []

    class Counting:
        def denoised(self, x, sigma, cond):
            forwards.append(len(x))
            return denoiser.denoised(x, sigma, cond)

    cases = ((32, 2, False, [4, 4, 2]), (32, 8, False, [10]), (16, 1, False, [8, 2]), (32, 1, False, [2] * 5),
             (32, 2, True, [2, 2, 2, 2, 1, 1]))  # fmt: skip
    for side, batch, apart, rows in cases:
        drawing = Drawing(source, Prompts(("a cat",) * 5, "", side, side, steps=1, sampler="euler", cfg=2.0))
        with Trainer(source, data, replace(config, batch_size=batch)) as trainer:
            denoiser, at_once = trainer.denoiser, trainer.at_once(drawing)
            forwards.clear()
            drawing.draw(Counting(), at_once=at_once, apart=apart)
        assert forwards == rows


@pytest.mark.parametrize(("at_once", "apart"), [(1, False), (2, False), (4, False), (3, True)])
def test_prompts_in_parts_are_the_pictures_of_all_at_once(source, at_once, apart):
    drawing = Drawing(source, Prompts(("a cat", "a dog", "a bird"), height=32, width=32, steps=3, cfg=2.0))
    denoiser = source.denoiser(None)
    with denoiser.opened():
        whole, parts = drawing.draw(denoiser), drawing.draw(denoiser, at_once=at_once, apart=apart)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pixels", [64, 512], ids=["whole", "tiles"])
def test_what_decoding_takes_is_predicted(folders, family, pixels):
    source = load_diffusers(folders / family)
    shape = (source.latent_channels, *(pixels // source.scale_factor,) * 2)
    latents = torch.zeros(1, *shape)
    with Ledger("cpu") as ledger:
        ledger.leave_out(weights_in([source.vae]))
        source.preview_latents(latents)
    assert decoding_needs(source, shape) == pytest.approx(ledger.peak, rel=0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_decoder_comes_to_a_card_alone_and_part_by_part_where_there_is_little_room(
    folders, family, monkeypatch
):
    source = load_diffusers(folders / family)
    parts = decoding(source.vae)
    sizes = [sum(t.nbytes for t in weights_in([part])) for part in parts]
    assert sum(sizes) == sum(
        p.nbytes for name, p in source.vae.named_parameters() if not name.startswith(("encoder", "quant"))
    )
    # A device that is not the decoder's home, and to which tensors can be moved without a driver.
    monkeypatch.setattr(source, "device", torch.device("meta"))
    taken = {}
    for kind, crowded, visitors in (("none", False, []), ("whole", False, parts), ("in turn", True, parts)):
        monkeypatch.setattr(type(source), "crowded", crowded)
        monkeypatch.setattr("rollout_trainer.training.models.diffusers.decoding", lambda _, v=visitors: v)
        taken[kind] = decoding_needs(source, (source.latent_channels, 16, 16))
    assert taken["whole"] == taken["none"] + sum(sizes)
    assert taken["none"] < taken["in turn"] <= taken["none"] + max(sizes)


def test_a_decoder_that_came_part_by_part_made_the_same_picture_and_is_at_home_again(folders, monkeypatch):
    source = load_diffusers(folders / "sd3")
    latents = torch.randn(2, source.latent_channels, 16, 16)
    homes = {name: p.data_ptr() for name, p in source.vae.named_parameters()}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in source.vae.modules()]
    assert source.crowded
    present, most = set(), []
    fetch = visits.fetched

    @contextmanager
    def watched(parts, device, on_paper=False):
        present.update(map(id, parts))
        most.append(len(present))
        with fetch(parts, torch.device("cpu"), on_paper):
            yield
        present.difference_update(map(id, parts))

    monkeypatch.setattr(visits, "fetched", watched)
    in_turn = source.preview_latents(latents)
    assert set(most) == {1}
    assert not present
    assert torch.equal(in_turn, source.decode_latents(latents))
    assert {name: p.data_ptr() for name, p in source.vae.named_parameters()} == homes
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in source.vae.modules()] == hooks


def test_where_the_room_is_little(folders, monkeypatch):
    source = load_diffusers(folders / "sd3")
    decoder = sum(t.nbytes for t in weights_in(decoding(source.vae)))
    for factor, crowded in ((19, True), (21, False)):
        network = SimpleNamespace(parameters=lambda n=factor: iter([torch.empty(n * decoder, dtype=torch.uint8)]),
                                  buffers=lambda: iter(()))  # fmt: skip
        monkeypatch.setattr(source, "module", network)
        assert source.crowded is crowded
    monkeypatch.setattr(source, "swap", object())
    assert source.crowded


def test_a_model_without_a_decoder_of_its_own_takes_nothing_to_decode():
    assert decoding_needs(SimpleNamespace(device=torch.device("cuda")), (4, 8, 8)) == 0


@pytest.fixture(scope="module")
def demo():
    """A model whose pictures take more to decode than a step of batch 1 takes."""
    return load_diffusers(ROOT / "demo" / "model")


@pytest.mark.parametrize(("pixels", "cfg", "every"), [(64, 1.0, 1), (128, 1.0, 0), (128, 3.0, 1)])
def test_a_run_with_large_pictures_is_predicted(demo, pixels, cfg, every):
    data = dataset(demo, side=64)
    config = settings(demo, batch_size=1, gradient_checkpointing=True, preview_every=every)
    drawing = Drawing(demo, Prompts(("a cat",) * 3, "", pixels, pixels, steps=2, cfg=cfg))
    needs = plan(demo, data, config, 1 << 40, drawing).needs
    assert needs.of_previews > 0

    def drawn(trainer):
        if every:
            trainer.take_film()
        trainer.draw(drawing)

    assert needs.peak == pytest.approx(measured(demo, data, config, then=drawn), rel=0.1)


def test_what_pictures_need_is_the_highest_of_drawing_and_decoding(demo):
    source = demo
    data, config = dataset(source), settings(source, batch_size=1)
    batch = largest_batch(data, 1)
    bare = Needs(10, 2, 3, 40, 5, 0, 20, 1, 1)
    assert Previews.of(source, data, config, None).beside(bare, source, batch, config) == bare
    filmed = Previews.of(source, data, replace(config, preview_every=5), None)
    decoded = decoding_needs(source, data.buckets[0].shape)
    assert filmed.beside(bare, source, batch, config).preview == decoded
    large = Drawing(source, Prompts(("a", "b"), "", 128, 128, cfg=2.0))
    needs = Previews(5, large).beside(bare, source, batch, config)
    assert needs.preview == drawing_needs(source, batch, config, large)
    assert needs.of_previews == needs.preview - 40


def test_the_line_says_what_pictures_add_where_that_is_much(demo):
    source = demo
    data, config = dataset(source, side=32), settings(source, batch_size=1)
    large = Drawing(source, Prompts(("a cat",), "", 128, 128, cfg=2.0))
    plain, drawn = (plan(source, data, config, 1 << 40, drawing) for drawing in (None, large))
    assert drawn.as_is.peak - plain.as_is.peak == drawn.needs.of_previews > 0
    assert drawn.parts()["previews"] == drawn.needs.preview
    assert "draw pictures" not in plain.sentence()
    words = f", {memory.gb(drawn.needs.of_previews)} of that to draw pictures while it trains"
    assert drawn.sentence().endswith(words)


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


def test_tables_that_wrapped_functions_keep_are_forgotten():
    made = []

    def kept(function):
        cached = lru_cache(function)

        @wraps(function)
        def wrapper(*args):
            return cached(*args)

        return wrapper

    class Keeps(torch.nn.Linear):
        @kept
        def table(self, size):
            made.append(size)
            return torch.arange(float(size))

        def forward(self, x):
            return super().forward(x + self.table(x.shape[1]))

    network = Keeps(4, 4)
    with accounted(network, "cpu"):
        network(torch.ones(3, 4))
    assert network(torch.ones(3, 4)).sum().isfinite()
    assert made == [4, 4]


def test_shapes_are_not_pinned():
    with FakeTensorMode(), Ledger("cuda") as ledger:
        shape = torch.empty(4)
        assert torch.ops.aten._pin_memory(shape) is shape
    assert ledger.live == 0


def test_weights_are_on_the_very_device_of_what_is_made_there():
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    weight = moved(mode, torch.ones(2, 2), "cuda")
    with mode:
        made = torch.empty(2, device="cuda")
        assert weight.device == made.device == torch.device("cuda", 0)
        assert (weight @ made).device == made.device


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


def test_a_host_that_fetches_weights_trains_where_they_have_no_room(source, monkeypatch):
    """The run changes what it can, as where nothing is fetched; the host does its part by itself."""
    monkeypatch.setattr(type(source), "weight_offers", ("host",))
    source = copy.deepcopy(source)
    first, *others = source.module.transformer_blocks
    more = [copy.deepcopy(first) for _ in range(4)]
    source.module.transformer_blocks = torch.nn.ModuleList([first, *more, *others])
    data, config = dataset(source, 1, 16), TrainConfig(batch_size=1, lora=LoRAConfig(rank=8))
    whole = plan(source, data, config, budget=1 << 40)
    elsewhere = whole.weights.total - whole.weights.swapped
    assert elsewhere > 0
    for switches, saved in (((), 0), (("gradient_checkpointing",), 1)):
        budget = whole.as_is.peak - elsewhere - saved
        monkeypatch.setattr(memory, "memory_of", lambda device, weights, budget=budget: budget)
        changed, told = fitted(source, data, config, follow=True)
        assert changed.gradient_checkpointing == bool(switches)
        names = " and ".join([*switches, memory.ELSEWHERE])
        assert f"; trained with {names}: {memory.gb(budget)} GB, steps " in told


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
