"""A tiny model and dataset, so that the loop can be tested in milliseconds a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rollout_trainer.samplers import FlowSchedule, TableSchedule
from rollout_trainer.training.data.dataset import Bucket, LatentDataset
from rollout_trainer.training.forms import expand
from rollout_trainer.training.lora.adapter import AdapterState, LoRAConfig
from rollout_trainer.training.models.source import Denoiser
from rollout_trainer.training.runs.saving import Saver
from rollout_trainer.training.trainer.config import TrainConfig
from rollout_trainer.training.trainer.optim import OptimizerConfig


class ToyNetwork(nn.Module):
    """Two convolutions with a time and a text vector between them."""

    def __init__(self, channels: int = 4, width: int = 8, text: int = 6) -> None:
        super().__init__()
        self.inp = nn.Conv2d(channels, width, 3, padding=1)
        self.time = nn.Linear(1, width)
        self.text = nn.Linear(text, width)
        self.out = nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        hidden = self.inp(x) + expand(self.time(sigma[:, None]), x)[..., 0].reshape(len(x), -1, 1, 1)
        hidden = hidden + self.text(context.mean(1))[:, :, None, None]
        return self.out(torch.nn.functional.silu(hidden))


class ToyDenoiser(Denoiser):
    def __init__(self, source: ToySource) -> None:
        self.prediction = source.prediction
        self.schedule = source.schedule
        self.module = source.module
        self.source = source

    def opened(
        self, training: bool = False, checkpointing: bool = False, regions: Any = None
    ) -> AbstractContextManager[None]:
        return nullcontext()

    def predict(self, x: Tensor, sigma: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        assert len(x) == len(sigma) == len(cond["context"])
        self.source.calls.append(len(x))
        scale = 1.0 if self.prediction == "flow" else (1 + expand(sigma, x) ** 2).rsqrt()
        return self.module(x * scale, sigma.log1p(), cond["context"])


class ToySource:
    """A `ModelSource` on the toy network; `calls` lists the rows of every model call."""

    name = "toy"
    fingerprint = encoder_fingerprint = "toy"
    lora_names = "comfyui"
    device = torch.device("cpu")
    dtype = torch.float32
    default_resolution = 8
    size_multiple = 1
    default_lora_targets = (r"^(inp|text|out)$",)

    def __init__(self, prediction: str = "flow") -> None:
        self.prediction = prediction
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        table = TableSchedule.from_alphas_cumprod((1 - betas).cumprod(0))
        self.schedule = FlowSchedule(3.0) if prediction == "flow" else table
        self.calls: list[int] = []
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.module = ToyNetwork().requires_grad_(False).eval()

    def denoiser(self, dtype: torch.dtype | None = None) -> ToyDenoiser:
        return ToyDenoiser(self)

    def encode_text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        seeds = [sum(map(ord, caption)) for caption in captions]
        return {
            "context": torch.stack(
                [torch.randn(3, 6, generator=torch.Generator().manual_seed(s)) for s in seeds]
            )
        }

    def preview_latents(self, latents: Tensor) -> Tensor:
        return latents[:, :3].sigmoid()

    def save_lora(self, adapter: AdapterState, metadata: Mapping[str, str], path: Path) -> None:
        from safetensors.torch import save_file

        save_file(dict(adapter.tensors), path, dict(metadata))


def toy_data(
    n: int = 12, sizes: Sequence[int] = (6,), masked: bool = False, variants: int = 1
) -> LatentDataset:
    g = torch.Generator().manual_seed(1)
    buckets = tuple(
        Bucket(
            latents=torch.randn(n, 4, size, 6, generator=g),
            cond={"context": torch.randn(n * variants, 3, 6, generator=g)},
            masks=(torch.rand(n, 1, size, 6, generator=g) > 0.3).float() if masked else None,
            repeats=torch.ones(n, dtype=torch.long),
            names=tuple(map(str, range(n))),
            captions=tuple(map(str, range(n))),
            variants=variants,
        )
        for size in sizes
    )
    return LatentDataset(buckets, {"context": torch.zeros(1, 3, 6)}, fingerprint="toy-data")


def toy_config(**changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "steps": 100,
        "batch_size": 4,
        "seed": 3,
        "lora": LoRAConfig(rank=2, alpha=2.0),
        "optimizer": OptimizerConfig(lr=1e-2),
    }
    return TrainConfig(**{**values, **changes})


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one tiny random pipeline folder for each family, named as in `tiny_pipelines.BUILDERS`."""
    from tiny_pipelines import BUILDERS

    root = tmp_path_factory.mktemp("models")
    for name, build in BUILDERS.items():
        build(root / name)
    return root


@pytest.fixture
def toy_source() -> ToySource:
    """A flow model."""
    return ToySource()


@pytest.fixture
def saved_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state that was begun to be saved is on the disk when the step is told of."""
    saved = Saver.saved

    def waiting(saver: Saver) -> int:
        saver.finish()
        return saved(saver)

    monkeypatch.setattr(Saver, "saved", waiting)


@pytest.fixture
def make_source() -> Callable[[str], ToySource]:
    """``make_source(prediction)``."""
    return ToySource


@pytest.fixture
def make_data() -> Callable[..., LatentDataset]:
    """``make_data(n, sizes, masked, variants)``."""
    return toy_data


@pytest.fixture
def make_config() -> Callable[..., TrainConfig]:
    """``make_config(**changes)``: a `TrainConfig` for the toy model."""
    return toy_config
