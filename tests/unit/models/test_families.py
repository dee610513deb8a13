"""One trainer for every kind of model: diffusers transformers (flow) and UNets (epsilon, v), with rollouts."""

import math

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rollout_trainer.training.data.dataset import read_image_folder
from rollout_trainer.training.data.encoding import encode
from rollout_trainer.training.forms import add_noise, from_velocity, to_denoised, to_velocity
from rollout_trainer.training.lora.adapter import LoRAConfig, attached
from rollout_trainer.training.lora.reading import read_lora
from rollout_trainer.training.models.families import load_diffusers
from rollout_trainer.training.objective.config import RolloutConfig
from rollout_trainer.training.pictures.sampling import sample
from rollout_trainer.training.runs.export import save_lora, save_lora_of_state
from rollout_trainer.training.runs.folder import RunFolder
from rollout_trainer.training.runs.run import start, train
from rollout_trainer.training.trainer.config import TrainConfig
from rollout_trainer.training.trainer.optim import OptimizerConfig

ROLLOUT = RolloutConfig(max_step_offset=3, probability=1.0, steps_per_trajectory=20)


def config(**changes):
    values = {
        "steps": 6,
        "batch_size": 2,
        "lora": LoRAConfig(rank=2, alpha=1.0),
        "optimizer": OptimizerConfig(lr=1e-2),
        "rollout": ROLLOUT,
    }
    return TrainConfig(**{**values, **changes})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i, caption in enumerate(("a red cat", "dog", "a dog", "cat")):
        Image.new("RGB", (20, 20), (60 * i, 40, 200 - 40 * i)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(caption)
    return read_image_folder(folder)


@pytest.fixture(params=["sd3", "flux", "sd", "sdxl"])
def source(request, folders):
    return load_diffusers(folders / request.param)


def data_of(source, pictures):
    return encode(pictures, source, resolution=16, bucket_step=source.size_multiple)


def without_base_file(metadata):
    """Without the hashes of the base model's file, which a run's folder alone does not know, and what covers them."""
    names = {"ss_sd_model_hash", "ss_new_sd_model_hash", "rollout_trainer_digest"}
    return {name: value for name, value in metadata.items() if name not in names}


def test_every_family_trains_with_rollouts_saves_and_samples(source, pictures, tmp_path):
    data = data_of(source, pictures)
    run = train(start(tmp_path, "t", source, data, config()), 6)
    columns = run.history.columns
    assert all(math.isfinite(v) for v in columns["total"])
    assert sum(columns["rolled"]) > 6
    assert any(not math.isnan(v) for v in columns["adr"]) == (source.prediction == "flow")

    path = save_lora(run, tmp_path, "trained")
    assert save_lora(run, tmp_path, "trained").name == "trained-2.safetensors"  # never overwrites
    alone = save_lora_of_state(RunFolder(run.folder.path), run.step, tmp_path, "alone")
    with safe_open(alone, "pt") as own, safe_open(path, "pt") as known:  # the header's order is not said
        assert without_base_file(own.metadata()) == without_base_file(known.metadata())
        assert set(own.keys()) == set(known.keys())
        assert all(torch.equal(own.get_tensor(key), known.get_tensor(key)) for key in known.keys())  # noqa: SIM118
    again = read_lora(path, source.module)
    x = torch.randn(2, *source.latent_shape(16, 16), generator=torch.Generator().manual_seed(0))
    sigma, cond = torch.tensor([0.3, 0.8]), source.encode_text(["a red cat", "dog"])
    outputs = []
    for state in (None, run.adapter, again):
        with attached(source.module, state), torch.no_grad():
            outputs.append(source.denoiser().predict(x, sigma, cond))
    torch.testing.assert_close(outputs[1], outputs[2])
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-4)
    picture = sample(run.model, ["a red cat"], height=16, width=16, steps=3)
    assert picture.isfinite().all()


@pytest.mark.parametrize("kind", ["dora", "loha", "lokr"])
def test_every_kind_of_adapter_trains(kind, folders, pictures, tmp_path):
    source = load_diffusers(folders / "sd3")
    run = start(tmp_path, "t", source, data_of(source, pictures), config(lora=LoRAConfig(kind, 2, 2.0)))
    trained = train(run, 4)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(run.adapter.tensors.values(), trained.adapter.tensors.values(), strict=True)
    )


def test_gradient_checkpointing_changes_memory_not_results(source, pictures, tmp_path):
    data = data_of(source, pictures)
    plain, checkpointed = (
        train(start(tmp_path, "t", source, data, config(gradient_checkpointing=on)), 3).adapter.tensors
        for on in (False, True)
    )
    for name, tensor in plain.items():
        torch.testing.assert_close(checkpointed[name], tensor, atol=1e-5, rtol=1e-4)
    assert not source.module.is_gradient_checkpointing


@pytest.mark.parametrize("autocast", ["bf16", "fp16"])
def test_autocast_trains_near_full_precision(autocast, folders, pictures, tmp_path):
    source = load_diffusers(folders / "sd3")
    data = data_of(source, pictures)
    full = train(start(tmp_path, "t", source, data, config(rollout=RolloutConfig())), 5)
    half = train(start(tmp_path, "t", source, data, config(rollout=RolloutConfig(), autocast=autocast)), 5)
    assert half.history.columns["total"] == pytest.approx(full.history.columns["total"], rel=0.03)
    assert half.history.columns["total"] != full.history.columns["total"]
    assert all(t.dtype == torch.float32 for t in half.adapter.tensors.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_base_trains_a_float32_adapter(dtype, folders, pictures, tmp_path):
    source = load_diffusers(folders / "sd3", dtype=dtype)
    run = train(start(tmp_path, "t", source, data_of(source, pictures), config()), 5)
    assert all(math.isfinite(v) for v in run.history.columns["total"])
    assert all(t.dtype == torch.float32 for t in run.adapter.tensors.values())
    assert {p.dtype for p in source.module.parameters()} == {dtype}


class WithoutFloat64(TorchDispatchMode):
    """The meta device refuses float64 inside, as Apple's does."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for made in tree_leaves(out):
            if isinstance(made, torch.Tensor) and made.device.type == "meta" and made.dtype == torch.float64:
                raise TypeError(f"{func}: the device doesn't support float64")
        return out


# diffusers' Flux asks for float64 by itself, and looks whether the device is Apple's first.
@pytest.mark.parametrize("source", ["sd3", "sd", "sdxl"], indirect=True)
def test_a_device_without_float64_will_do(source, pictures):
    data = data_of(source, pictures)
    batch = data.batch(torch.arange(2)).to(torch.device("meta"))
    u = torch.tensor([0.3, 0.9], dtype=torch.float64)
    sigma = source.schedule.sigma(u).to(batch.x0)
    source.module.to("meta")
    source.device = torch.device("meta")
    with WithoutFloat64():
        with pytest.raises(TypeError, match="support float64"):
            sigma.double()
        x = add_noise(source.prediction, batch.x0, torch.randn_like(batch.x0), sigma)
        output = source.denoiser().predict(x, sigma, batch.cond)
        velocity = to_velocity(source.prediction, x, sigma, output)
        to_denoised(source.prediction, x, sigma, output)
        from_velocity(source.prediction, x, sigma, velocity)
    assert output.shape == x.shape


def test_float32_noise_levels_lose_nothing_of_a_timestep(folders):
    schedule = load_diffusers(folders / "sd").schedule
    sigma = schedule.sigma(torch.linspace(0.001, 1, 5000, dtype=torch.float64))
    exact, single = schedule.u(sigma), schedule.u(sigma.float())
    assert (exact - single).abs().max() * len(schedule.sigmas) < 1e-3  # of one training timestep
