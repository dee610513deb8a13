"""A loaded base model and what travels with it: encoders, decoder, schedule, and an adapter to run under.

`ModelSource` is what a backend provides. `LoadedModel` pairs one with an adapter; it never changes, so
a node graph may branch on it: the adapter is on the network only while a `denoiser()` block is open.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ...samplers.schedules import Schedule
from ..conditioning import Cond
from ..forms import Prediction, to_denoised, to_velocity
from ..lora.adapter import AdapterState, attached
from .compiled import Regions


class BaseFile(NamedTuple):
    """The file that a network's weights were read from, where it is one and is known."""

    name: str
    """What people call the model by: never a path."""
    path: Path


class ModelSource(Protocol):
    """A frozen base model with its encoders, as a backend loads it. Pictures are [N, 3, H, W] in [0, 1]."""

    @property
    def name(self) -> str:
        """Short name for reports and file metadata."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hex digest of the network's weights and settings; checkpoints are tied to it."""
        ...

    @property
    def encoder_fingerprint(self) -> str:
        """Hex digest of all that `encode_text` and `encode_images` depend on; caches are tied to it."""
        ...

    @property
    def prediction(self) -> Prediction:
        """What the network predicts."""
        ...

    @property
    def schedule(self) -> Schedule:
        """Noise level along a trajectory."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the frozen weights."""
        ...

    @property
    def default_resolution(self) -> int:
        """Side in pixels of the square picture that the model was made for."""
        ...

    @property
    def size_multiple(self) -> int:
        """Picture sides must be multiples of this many pixels."""
        ...

    @property
    def default_lora_targets(self) -> tuple[str, ...]:
        """Regular expressions, searched in module names, for the family's attention projections."""
        ...

    @property
    def lora_names(self) -> str:
        """How its LoRA files name layers, one of `training.lora.file.NAMES`; a run folder keeps it."""
        ...

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Shape of one latent (no batch axis) of a picture of `height` x `width` pixels.

        Raises:
            ValueError: the model cannot make pictures of this size.
        """
        ...

    def denoiser(self, dtype: torch.dtype | None = None) -> Denoiser:
        """The network, always the same frozen module; `dtype`: autocast to it inside the model call."""
        ...

    def encode_text(self, captions: Sequence[str]) -> Cond:
        """Conditioning [N, ...] of N captions; row i depends on caption i alone."""
        ...

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Latents [N, C, h, w], as the network sees them, of `pixels: [N, 3, H, W]`; row by row."""
        ...

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Inverse of `encode_images`, as far as the autoencoder goes."""
        ...

    def preview_latents(self, latents: Tensor) -> Tensor:
        """Pictures [N, 3, ...] of latents, while the network is being trained: it stays on its device.

        Raises:
            RuntimeError: the family has no such pictures.
        """
        ...

    def lora_tensors(self, adapter: AdapterState) -> dict[str, Tensor]:
        """The tensors of a LoRA file, with the key names that loaders of this family understand, at scale 1."""
        ...

    def save_lora(self, adapter: AdapterState, metadata: Mapping[str, str], path: Path) -> None:
        """Write `lora_tensors` to `path`."""
        ...

    def read_lora(self, path: Path) -> AdapterState:
        """An adapter that acts as the LoRA file `path`, of ours or of others.

        Raises:
            ValueError: it cannot be read or trained on, see `training.lora.reading.read_lora`.
        """
        ...


@dataclass(frozen=True)
class LoadedModel:
    """A base model and the adapter it runs under (None: the base alone)."""

    source: ModelSource
    adapter: AdapterState | None = None

    @contextmanager
    def denoiser(self, dtype: torch.dtype | None = None) -> Iterator[Denoiser]:
        """The network with the adapter on it inside; after, also after an error, the base is as it was."""
        denoiser = self.source.denoiser(dtype)
        with denoiser.opened(), attached(denoiser.module, self.adapter, self.source.device):
            yield denoiser

    def with_adapter(self, adapter: AdapterState | None) -> LoadedModel:
        """The same base under another adapter."""
        return replace(self, adapter=adapter)


class Denoiser(Protocol):
    """A model as the trainer and the samplers use it: latents and noise levels in, prediction out.

    A backend answers in the form that its network has, and inherits the other two.
    """

    prediction: Prediction
    """What `predict` returns: flow velocity, epsilon or v."""
    schedule: Schedule
    """Noise level along the trajectory, with the model's shift."""
    module: nn.Module
    """The network that gets adapters. Frozen, apart from the adapters."""

    def opened(
        self, training: bool = False, checkpointing: bool = False, regions: Regions | None = None
    ) -> AbstractContextManager[None]:
        """The network is ready to compute inside; what that took is undone after, also after an error.

        Args:
            training: gradients can flow through it.
            checkpointing: its activations are recomputed in the backward pass.
            regions: of the same network, attached inside.
        """
        ...

    def predict(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """The raw prediction at `x: [B, ...]` (flow or VE state), `sigma: [B]`; of the shape and dtype of `x`."""
        ...

    def velocity(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """The same prediction as ``dx/dsigma``."""
        return to_velocity(self.prediction, x, sigma, self.predict(x, sigma, cond))

    def denoised(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """The same prediction as the estimate of x0."""
        return to_denoised(self.prediction, x, sigma, self.predict(x, sigma, cond))

    def loss_weight(self, sigma: Tensor) -> Tensor | None:
        """[B]: what a squared error of `predict` at `sigma: [B]` counts; None: 1.

        Of a network whose own output is none of the forms of a `Prediction` it is what brings the error to that output.
        """
        return None
