"""A folder whose network torchao quantised, with the real package: it trains, and keeps no more than what is stored."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel, TorchAoConfig
from torch import nn

from rollout_trainer.training.data.dataset import Bucket, LatentDataset
from rollout_trainer.training.lora.adapter import LoRAConfig
from rollout_trainer.training.models.families import load_diffusers
from rollout_trainer.training.models.stored import ArrivedLinear, made_plain
from rollout_trainer.training.models.swap import Swap
from rollout_trainer.training.models.visits import weights_in
from rollout_trainer.training.objective.config import RolloutConfig
from rollout_trainer.training.plan.ledger import Ledger
from rollout_trainer.training.plan.memory import largest_batch, weights_of
from rollout_trainer.training.plan.needs import step_needs
from rollout_trainer.training.trainer.config import TrainConfig
from rollout_trainer.training.trainer.trainer import Trainer

torchao = pytest.importorskip("torchao.quantization", reason="not among the lowest versions: see dev.py")
DEMO = Path(__file__).resolve().parents[3] / "demo" / "model"
CONFIGS = {
    "int8": lambda: torchao.Int8WeightOnlyConfig(version=2),
    "float8": lambda: torchao.Float8WeightOnlyConfig(),
    "int8, activations too": lambda: torchao.Int8DynamicActivationInt8WeightConfig(),
}


def quantised(config):
    return SD3Transformer2DModel.from_pretrained(
        str(DEMO / "transformer"), quantization_config=TorchAoConfig(config), torch_dtype=torch.bfloat16
    )


@pytest.fixture(scope="module")
def arrived(tmp_path_factory):
    """``arrived(name)``: the demo's folder, its transformer quantised and saved by diffusers."""
    root, made = tmp_path_factory.mktemp("arrived"), {}

    def folder(name):
        if name not in made:
            made[name] = root / name.partition(",")[0] / str(len(made))
            shutil.copytree(DEMO, made[name], ignore=shutil.ignore_patterns("transformer"))
            quantised(CONFIGS[name]()).save_pretrained(made[name] / "transformer")
        return made[name]

    return folder


def loaded(folder, **options):
    return load_diffusers(folder, torch.device("cpu"), torch.bfloat16, **options)


def dataset(source, n=2, side=64):
    latents = torch.randn(n, *source.latent_shape(side, side), generator=torch.Generator().manual_seed(0))
    names = tuple(map(str, range(n)))
    bucket = Bucket(
        latents, source.encode_text(["a red cat"] * n), None, torch.ones(n, dtype=torch.long), names, names
    )
    return LatentDataset((bucket,), source.encode_text([""]), fingerprint="random")


def config_of(source, **changes):
    lora = LoRAConfig(rank=4, kind=changes.pop("kind", "lora"), targets=source.default_lora_targets)
    return TrainConfig(batch_size=2, lora=lora, **changes)


def trained(source, **changes):
    rollout = RolloutConfig(max_step_offset=3, probability=1.0)
    with Trainer(source, dataset(source), config_of(source, rollout=rollout, **changes)) as trainer:
        losses = [trainer.step().loss for _ in range(3)]
        return losses, trainer.adapter.state().tensors


@pytest.mark.parametrize("name", CONFIGS)
def test_its_matrices_are_those_that_torchao_makes(arrived, name):
    source, theirs = loaded(arrived(name)), quantised(CONFIGS[name]())
    layers = {n: m for n, m in source.module.named_modules() if isinstance(m, ArrivedLinear)}
    assert len(layers) == sum(isinstance(m, nn.Linear) for m in theirs.modules()) == 46
    for layer, own in layers.items():
        assert torch.equal(own.weight, theirs.get_submodule(layer).weight.dequantize())
    with torch.no_grad():
        x = dataset(source, 1).buckets[0].latents
        sigma, cond = torch.tensor([0.5]), source.encode_text(["a red cat"])
        own = source.denoiser().predict(x, sigma, cond)
        source.module = theirs
        other = source.denoiser().predict(x, sigma, cond)
    # Rounding of bfloat16; where activations are rounded as well, theirs are.
    assert (own - other).norm() / other.norm() < (0.1 if "activations" in name else 0.04)


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("name", ["int8", "float8"])
def test_it_trains_as_the_same_numbers_in_bfloat16_do(arrived, name, kind):
    source, plain = loaded(arrived(name)), loaded(DEMO)
    for layer, module in source.module.named_modules():
        if isinstance(module, ArrivedLinear):
            plain.module.get_submodule(layer).weight.data = module.weight
    losses, own = trained(source, kind=kind)
    expected, theirs = trained(plain, kind=kind)
    assert losses == pytest.approx(expected, rel=0.02)
    for tensor, other in zip(own.values(), theirs.values(), strict=True):
        torch.testing.assert_close(tensor, other, rtol=0.1, atol=2e-3)
    assert sum(bool(tensor.any()) for tensor in own.values()) > 0.9 * len(
        own
    )  # the last text layers end nowhere


@pytest.mark.parametrize("checkpointing", [False, True])
def test_recomputed_and_fetched_it_trains_the_same_lora(arrived, checkpointing):
    base = trained(loaded(arrived("int8")))
    source = loaded(arrived("int8"), swap=checkpointing)
    assert isinstance(source.swap, Swap) is checkpointing
    other = trained(source, gradient_checkpointing=checkpointing)
    assert base[0] == other[0]
    assert all(torch.equal(tensor, other[1][name]) for name, tensor in base[1].items())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_plan_knows_what_is_stored_and_what_a_step_takes(arrived, checkpointing):
    source, plain = loaded(arrived("int8")), loaded(DEMO)
    stored = weights_of(source.module).total
    assert stored < 0.55 * weights_of(plain.module).total
    assert stored == sum(t.nbytes for t in weights_in([source.module]))
    data, config = dataset(source), config_of(source, gradient_checkpointing=checkpointing)
    needs = step_needs(source, largest_batch(data, 2), config)
    usual = step_needs(plain, largest_batch(data, 2), config)
    assert needs.kept <= usual.kept * 1.01  # no matrix is kept as it is computed with
    with Ledger("cpu") as ledger:
        ledger.leave_out(weights_in([source.module]))
        ledger.leave_out([data.buckets[0].latents, *data.buckets[0].cond.values()])
        with Trainer(source, data, config) as trainer:
            trainer.step()
            trainer.step()
    assert needs.peak == pytest.approx(ledger.peak, rel=0.1)


def test_what_it_cannot_be_is_said_before_anything_is_trained(arrived):
    source = loaded(arrived("int8"))
    assert source.weight_offers == ("swap",)
    for kind in ("loha", "lokr"):
        with pytest.raises(ValueError, match="kind must be lora or dora on a model whose weights are stored"):
            Trainer(source, dataset(source), config_of(source, kind=kind))
    with pytest.raises(ValueError, match=r"weights must be full for .* quantised already, got float8"):
        loaded(arrived("int8"), weights="float8")


def test_a_wrapper_that_cannot_be_made_plain_is_refused():
    class Opaque(torch.Tensor):
        @staticmethod
        def __new__(cls, data):
            return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=data.dtype)

        def __tensor_flatten__(self):
            return [], None

        @classmethod
        def __tensor_unflatten__(cls, inner, context, size, stride):
            return cls(torch.empty(size))

        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            return args[0] if func is torch.ops.aten.detach.default else NotImplemented

    network = nn.Sequential(nn.Linear(4, 4))
    network[0].weight = nn.Parameter(Opaque(torch.zeros(4, 4)), requires_grad=False)
    with pytest.raises(
        ValueError, match="weights must be of a kind that can be made plain again, got Opaque"
    ):
        made_plain(network)


def test_a_layer_of_a_host_is_left_alone():
    network = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    assert not made_plain(network)
    assert type(network[0]) is nn.Linear
