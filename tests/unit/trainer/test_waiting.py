"""How often a training step waits for an accelerator, and what number formats it asks of it; the CPU plays one."""

from contextlib import nullcontext

import pytest
import torch
from accelerator import DEVICE, Accelerator
from PIL import Image
from torch import nn

from rollout_trainer.samplers import SAMPLERS, FlowSchedule, integrate, trajectory
from rollout_trainer.training.data.dataset import read_image_folder
from rollout_trainer.training.data.encoding import encode
from rollout_trainer.training.data.latents import Latents, dataset_from_latents
from rollout_trainer.training.lora.adapter import LoRAConfig
from rollout_trainer.training.models.families import load_diffusers
from rollout_trainer.training.models.hosted import HostModel
from rollout_trainer.training.objective.config import ReflexFlowConfig, RolloutConfig
from rollout_trainer.training.objective.losses import LossConfig
from rollout_trainer.training.objective.targets import TARGETS
from rollout_trainer.training.trainer.config import TrainConfig
from rollout_trainer.training.trainer.optim import OptimizerConfig
from rollout_trainer.training.trainer.trainer import Trainer


@pytest.fixture
def device():
    with Accelerator().running() as device:
        yield device


def on(device, source):
    """The source, its network on the device."""
    for tensor in [*source.module.parameters(), *source.module.buffers()]:
        device.put(tensor)
    source.device = DEVICE
    return source


def rollouts(**changes):
    return RolloutConfig(**{"max_step_offset": 4, "probability": 0.7, "steps_per_trajectory": 20, **changes})


OFF = RolloutConfig()
PLAIN = ReflexFlowConfig(enabled="off")
KINDS = {
    "plain": OFF,
    "rollout": rollouts(reflexflow=PLAIN),
    "rollout, reuse 4": rollouts(reflexflow=PLAIN, reuse=4),
    "ReflexFlow": rollouts(),
    "ReflexFlow, reuse 4": rollouts(reuse=4),
    "preserve": rollouts(preserve="a cat\na dog", preserve_rows=2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_waits_for_the_device_once(kind, device, make_source, make_data, make_config):
    """For the step's row of the history."""
    source = on(device, make_source("flow"))
    encode_text = source.encode_text
    source.encode_text = lambda texts: {name: device.put(t) for name, t in encode_text(texts).items()}
    config = make_config(rollout=KINDS[kind], ema_decay=0.9, caption_dropout=0.2)
    with Trainer(source, make_data(), config) as trainer:
        for _ in range(6):
            device.waits.clear()
            trainer.step()
            assert len(device.waits) == 1, "\n".join(device.waits)


@pytest.mark.parametrize("family", ["sd3", "flux", "sd", "sdxl"])
def test_a_step_of_a_diffusers_model_waits_once(family, device, folders, tmp_path):
    source = load_diffusers(folders / family)
    for i, caption in enumerate(("a red cat", "dog", "a dog", "cat")):
        Image.new("RGB", (20, 20), (60 * i, 40, 200 - 40 * i)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(caption)
    data = encode(read_image_folder(tmp_path), source, resolution=16, bucket_step=source.size_multiple)
    config = TrainConfig(steps=9, batch_size=2, lora=LoRAConfig(rank=2), rollout=rollouts(max_step_offset=2))
    with Trainer(on(device, source), data, config) as trainer:
        trainer.step()
        for _ in range(3):
            device.waits.clear()
            trainer.step()
            assert len(device.waits) == 1, "\n".join(device.waits)


class Host:
    """A network of a host that reads how long each caption is, and a number that goes with each, as ComfyUI does."""

    name = "Stand-in"
    prediction = "flow"
    device = DEVICE
    dtype = torch.float32
    latent_channels = 4
    frames = False

    def __init__(self, device):
        self.module = nn.ModuleDict({"attn": nn.ModuleDict({"qkv": nn.Linear(4, 4)})}).requires_grad_(False)
        for tensor in self.module.parameters():
            device.put(tensor)
        self.read = []

    def flow_sigma(self, u):
        return u

    def weights(self):
        return ()

    def encoder_weights(self):
        return ()

    def opened(self, training=False):
        return nullcontext()

    def loss_weight(self, sigma):
        return None

    def denoised(self, x, sigma, rows):
        self.read += [(row["cross_attn"].shape[1], float(row["guidance"])) for row in rows]
        mean = torch.stack([row["cross_attn"].mean() for row in rows])
        return self.module["attn"]["qkv"](x.movedim(1, -1)).movedim(-1, 1) + mean.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "preserve"])
def test_a_step_of_a_hosts_model_waits_once_whatever_it_reads(kind, device, make_config):
    conds = [
        {"cross_attn": torch.randn(1, 2 + i, 3), "guidance": torch.full((1,), 3.0 + i)} for i in range(4)
    ]
    latents = [Latents(torch.randn(4, 4, 6, 6), None)]
    data = dataset_from_latents(latents, conds, {"cross_attn": torch.zeros(1, 1, 3)}, None, 1, "Stand-in")
    network = Host(device)
    config = make_config(rollout=KINDS[kind], ema_decay=0.9, caption_dropout=0.2)
    with Trainer(HostModel(network), data, config) as trainer:
        trainer.step()  # in which the network is looked at
        for _ in range(6):
            device.waits.clear()
            trainer.step()
            assert len(device.waits) == 1, "\n".join(device.waits)
        network.read.clear()
        trainer.load(trainer.state())  # as it was read from the disk, states of rollouts too
        trainer.step()
    assert {number - length for length, number in network.read if length > 1} == {1.0}
    assert len({length for length, _ in network.read}) > 1


OPTIMIZERS = [
    "adamw",
    "adafactor",
    "prodigy",
]  # adamw8bit asks for CUDA itself: a device that is played has none


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("prediction", ["flow", "epsilon", "v"])
def test_no_optimiser_puts_float64_on_the_device(
    optimizer, prediction, device, make_source, make_data, make_config
):
    """Apple's GPUs have none."""
    config = make_config(optimizer=OptimizerConfig(optimizer), rollout=rollouts(reuse=2), ema_decay=0.9)
    with Trainer(on(device, make_source(prediction)), make_data(), config) as trainer:
        for _ in range(4):
            trainer.step()
    assert device.wide == []


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction", ["flow", "v"])
def test_no_rollout_puts_float64_on_the_device(
    target, sampler, prediction, device, make_source, make_data, make_config
):
    loss = LossConfig("huber", min_snr_gamma=0 if prediction == "flow" else 5)
    own = rollouts(
        target=target, sampler=sampler, order=3 if sampler in ("unipc", "dpm") else 2, probability=1.0
    )
    config = make_config(rollout=own, loss=loss)
    with Trainer(on(device, make_source(prediction)), make_data(), config) as trainer:
        for _ in range(2):
            trainer.step()
        trainer.validate(make_data())
    assert device.wide == []


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_solver_puts_float64_on_the_device(sampler, device):
    x = device.put(torch.randn(3, 4, 2, 2))
    schedule = FlowSchedule(3.0)
    sigmas = trajectory(schedule, torch.tensor([1.0, 0.9, 0.5]).double(), 0.0, torch.tensor([5, 3, 1]))
    integrate(lambda x, sigma, rows: x * 0.5, x, sigmas, sampler)
    assert device.wide == []


def test_a_rollout_that_is_not_finite_skips_the_step_and_leaves_no_states(
    device, make_source, make_data, make_config
):
    """On the CPU it raises at once. A device is not asked; the step's own row of the history says it."""
    source = on(device, make_source("flow"))
    config = make_config(rollout=rollouts(probability=1.0, reuse=4), max_nonfinite=3)
    with Trainer(source, make_data(), config) as trainer:
        weight = source.module.out.weight
        good = weight.detach().clone()
        before = [p.detach().clone() for p in trainer.parameters]
        with torch.no_grad():
            weight.fill_(torch.inf)
        trainer.step()
        assert trainer.history.last("skipped") == 1
        assert trainer.pool.trail is None
        assert all(torch.equal(a, b) for a, b in zip(before, trainer.parameters, strict=True))
        with torch.no_grad():
            weight.copy_(good)
        trainer.step()
        assert trainer.history.last("skipped") == 0
        assert trainer.pool.trail is not None


def test_the_device_that_is_played_waits_and_refuses_as_a_real_one(device):
    """That the tests above can fail."""
    there, here = device.put(torch.arange(3.0)), torch.arange(3.0)
    with pytest.raises(RuntimeError, match="of the device and of the host"):
        there + here
    for reading in (
        lambda: float(there[0]),
        lambda: there.tolist(),
        lambda: bool(there.isfinite().all()),
        lambda: there[there > 1],
        lambda: there.nonzero(),
        lambda: there.cpu(),
        lambda: here.to(there.device),
        lambda: here.to(there),
        lambda: torch.as_tensor(1.0).to(DEVICE, non_blocking=True),  # out of pageable memory
        lambda: there[torch.tensor([0])],
    ):
        device.waits.clear()
        reading()
        assert len(device.waits) == 1
    device.waits.clear()
    assert here.pin_memory().to(DEVICE, non_blocking=True).device == DEVICE
    assert not device.waits
    assert not device.wide
    there.double()
    torch.zeros(2, dtype=torch.float64, device=DEVICE)
    assert len(device.wide) == 2
