"""A model that a host has loaded, as a `ModelSource`: any family, through the host's own sampling and conditioning.

The host's side is a `HostNetwork`, a plain object in the terms of that host: x0 estimates, and conditioning as named
tensors. Here it gets what training needs beside that: predictions, schedules, recomputation, LoRA files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from ...samplers.schedules import FlowSchedule, Schedule, TableSchedule
from ..conditioning import Cond, joined, placed, separated
from ..files import digest, lora_header, write_tensors
from ..forms import Prediction, expand, from_velocity
from ..lora.adapter import AdapterState, is_linear
from ..lora.file import NAMES, folded, with_dora_scale
from ..lora.keys import Place
from ..lora.reading import read_lora
from .compiled import Regions
from .differentiable import recomputed, sound_attention, writes_allowed
from .frames import Frames
from .source import BaseFile, Denoiser

ATTENTION = (
    r"attn\d?\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)$",  # UNets, and networks in diffusers' names
    r"attn2?\.(qkv|proj)$",  # SD3 (SD3.5 medium has two), Flux, HunyuanVideo
    r"(self|cross)_attn\.([qkvo]|[qkvo]_proj|output_proj)$",  # Wan, Cosmos
    r"attention\.(qkv|out|to_[qkv]|to_out\.0|w[qkvo])$",  # Lumina, HiDream
    r"single_blocks\.\d+\.linear[12]$",  # attention and MLP in one, of Flux and HunyuanVideo
)
"""Attention projections by the names that families give them; those that a network has are its default targets."""
SIDES = dict.fromkeys(
    ("SDXL", "QwenImage", "Krea2", "Anima", "AuraFlow", "PixArt", "HunyuanDiT", "JoyImage", "MageFlow"), 1024
)
"""Sides in pixels that families were made for, where their latents do not tell, by the names of ComfyUI's classes."""
RATES = (
    ("WAN22_Animate", 30.0),  # templates; the example of diffusers' pipeline_wan_animate
    ("WAN_Animate", 30.0),
    ("WAN22_WanDancer", 30.0),  # templates
    ("WAN21_SCAIL2", 30.0),  # templates
    ("WAN22_", 16.0),  # of the 14B models, as Wan 2.1: templates; sample_fps of Wan's wan_shared_config
    ("WAN22", 24.0),  # Wan 2.2 5B: templates; sample_fps of Wan's wan_ti2v_5B
    ("WAN", 16.0),
    ("HunyuanVideo", 24.0),  # templates of 1.0 and 1.5; arXiv 2412.03603: 129 frames are 5 s
    ("LTX", 25.0),  # templates; what ComfyUI and diffusers tell the network where nothing else is said
    ("CosmosPredict2", 16.0),  # fps of diffusers' pipeline_cosmos2_video2world
    (
        "CosmosVideo",
        24.0,
    ),  # the rate that its positions count nothing for in ComfyUI (base_fps); arXiv 2501.03575
    ("GenmoMochi", 30.0),  # the example of diffusers' mochi
    ("CogVideoX", 8.0),  # the examples of diffusers' cogvideo; arXiv 2408.06072
    ("Kandinsky5", 24.0),  # templates; the examples of diffusers' kandinsky5
)
"""Frames per second that families were made for, by how the names of ComfyUI's classes begin; the first that fits.
Templates are ComfyUI's (comfyui-workflow-templates 0.11.44): the rate of Create Video, or of LTXVConditioning."""
SMALLEST_SIGMA = 1e-4
"""Below it, x and the estimate of x0 are too near to tell the velocity in float32."""


class HostNetwork(Protocol):
    """What a host must provide of a model."""

    name: str
    prediction: Prediction
    module: nn.Module
    device: torch.device
    dtype: torch.dtype
    """What the network computes in."""
    table: Tensor
    """[N] ascending noise levels of the training timesteps."""
    latent_channels: int
    frames: bool
    """Whether latents have an axis of frames."""
    scale_factor: int
    patch_size: int

    def flow_sigma(self, u: Tensor) -> Tensor:
        """Sigma of a flow model at fractions of the trajectory."""
        ...

    def weights(self) -> Iterable[tuple[str, Tensor]]:
        """All that the network's output depends on."""
        ...

    def weight(self, module: str) -> Tensor:
        """The frozen weight of one of its modules."""
        ...

    def lora_keys(self) -> Mapping[str, tuple[str, tuple[int, int] | None, bool]]:
        """What the host's loader takes for a layer.

        By name in a LoRA file: module, first row and number of rows (None: all), whether its halves are exchanged.
        """
        ...

    def converted_lora(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A LoRA file as the host's loader looks at it."""
        ...

    def encoder_weights(self) -> Iterable[tuple[str, Tensor]]:
        """All that encoding and decoding depends on."""
        ...

    def on_paper(self) -> AbstractContextManager[None]:
        """Inside, under FakeTensorMode, the host fetches no weights: what it fetched would be no bytes, and be kept."""
        ...

    def reclaimable(self) -> int:
        """Bytes of its device that the host would let go of, beside what PyTorch has reserved."""
        ...

    @property
    def offloads(self) -> bool:
        """Whether the host keeps in the computer's memory what of the weights its device has no room for."""
        ...

    def opened(self, training: bool = False) -> AbstractContextManager[None]:
        """The network is on its device, and differentiable if `training`, inside."""
        ...

    def denoised(self, x: Tensor, sigma: Tensor, rows: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """The estimate of x0 of B samples, each with the conditioning of its own row; inside `opened`."""
        ...

    def loss_weight(self, sigma: Tensor) -> Tensor | None:
        """[B]: the square of an error of the network's own output, for one of `prediction`'s; None: 1."""
        ...

    def latent_in(self, latent: Tensor) -> Tensor:
        """The host's latents as the network sees them."""
        ...

    def clip_frames(self, most: int) -> int:
        """Frames of the longest clip of at most `most` that the autoencoder takes whole; 1: pictures alone."""
        ...

    def given_frames(self, samples: Tensor, mask: Tensor) -> Sequence[Mapping[str, Tensor]] | None:
        """Controls that say of each of [N, C, F, h, w] which frames a noise mask keeps; None: it keeps none."""
        ...

    whole_frames: int
    """Frames of the longest clip that is encoded at once: a longer one need not be held, and may come as `Frames`."""

    def encode_image(self, pixels: Tensor | Frames) -> Tensor:
        """Latent [1, C, ...] of a picture [1, H, W, 3], or of a video model's clip [F, H, W, 3]."""
        ...

    def encode_controls(
        self, controls: Sequence[tuple[str, Tensor]], target: Tensor | Frames
    ) -> Mapping[str, Tensor]:
        """Conditioning [1, ...] of a sample's controls (role, [1, H, W, 3]); `target`: its frames [F, H, W, 3]."""
        ...

    def told_rate(self, fps: float) -> Mapping[str, Tensor]:
        """Conditioning [1] that tells the network how many frames a second a clip has; empty: it is not told."""
        ...

    @property
    def reads_pictures(self) -> bool:
        """Whether its text encoder looks at reference pictures while it reads a caption."""
        ...

    def encode_caption_beside(self, caption: str, pictures: Sequence[Tensor]) -> Mapping[str, Tensor]:
        """Conditioning [1, ...] of a caption that is read beside pictures [1, H, W, 3]."""
        ...

    def decode_latent(self, latent: Tensor) -> Tensor:
        """Picture [1, H, W, 3] of a latent."""
        ...

    def preview_latent(self, latent: Tensor) -> Tensor:
        """Small picture [1, h, w, 3] in [0, 1] of a latent, without the autoencoder."""
        ...

    def encode_caption(self, caption: str, weights: bool = True) -> Mapping[str, Tensor]:
        """Conditioning [1, ...] of a caption; `weights`: (word:1.2) in it weighs a word, where the family can."""
        ...


class HostModel:
    """A `ModelSource` on a `HostNetwork`.

    Raises:
        ValueError: a flow model whose noise levels are not those of a shift.
    """

    lora_names = "comfyui"

    def __init__(self, network: HostNetwork) -> None:
        self.network = network
        self.name = network.name
        self.prediction: Prediction = network.prediction
        self.schedule: Schedule = (
            flow_schedule(network) if self.prediction == "flow" else TableSchedule(network.table)
        )
        self.device = network.device
        self.dtype = network.dtype

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of names, sizes and a sample of the values of all weights and patches, and of the noise levels."""
        return digest([*self.network.weights(), ("noise levels", self.network.table)])

    @property
    def base_file(self) -> BaseFile | None:
        """The file that the host read the network from, where it knows it."""
        path: Path | None = getattr(self.network, "path", None)
        return None if path is None else BaseFile(path.name, path)

    @cached_property
    def encoder_fingerprint(self) -> str:
        """The same of text encoders and autoencoder, and the family, whose scale the latents have."""
        return digest([*self.network.encoder_weights(), (self.name, torch.zeros(0))])

    @property
    def default_resolution(self) -> int:
        """Side in pixels of a square picture: of a family in `SIDES` that one, else by the kind of its latents.

        512 for video models and latents of four channels, else 1024.
        """
        other = 512 if self.network.frames or self.network.latent_channels == 4 else 1024
        return SIDES.get(self.name, other)

    @property
    def size_multiple(self) -> int:
        """Picture sides must be multiples of this many pixels."""
        return self.network.scale_factor * self.network.patch_size

    @cached_property
    def default_lora_targets(self) -> tuple[str, ...]:
        """The attention patterns that this network has; all linear layers of one that has none of them."""
        names = [name for name, m in self.network.module.named_modules() if is_linear(m)]
        found = tuple(p for p in ATTENTION if any(re.search(p, name) for name in names))
        return found or (r"\.\d+\.",)

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Shape (C, h, w), or (C, 1, h, w) of a video model, of one latent.

        Raises:
            ValueError: a side is not a positive multiple of `size_multiple`.
        """
        for side, value in (("height", height), ("width", width)):
            if value <= 0 or value % self.size_multiple:
                raise ValueError(
                    f"{side} must be a multiple of {self.size_multiple} for {self.name}, got {value}"
                )
        scale, frames = self.network.scale_factor, (1,) if self.network.frames else ()
        return self.network.latent_channels, *frames, height // scale, width // scale

    def clip_frames(self, most: int) -> int:
        """Frames of the longest clip of at most `most` that can be a sample; 1: the model makes pictures."""
        return 1 if self.name in SIDES else self.network.clip_frames(most)

    @property
    def whole_frames(self) -> int:
        """Frames of the longest clip that `encode_clip` takes at once; of longer ones it asks for parts."""
        return self.network.whole_frames

    @property
    def frame_rate(self) -> float:
        """Frames per second that the family was made for; 0: not known."""
        return next((rate for start, rate in RATES if self.name.startswith(start)), 0.0)

    def on_paper(self) -> AbstractContextManager[None]:
        """See `HostNetwork.on_paper`."""
        return self.network.on_paper()

    def reclaimable(self) -> int:
        """See `HostNetwork.reclaimable`."""
        return self.network.reclaimable()

    @property
    def weight_offers(self) -> tuple[str, ...]:
        """How the weights could be kept to take less of the device, see `training.plan.memory`."""
        return ("host",) if self.network.offloads else ()

    def denoiser(self, dtype: torch.dtype | None = None) -> HostDenoiser:
        """The network as training and samplers see it; `dtype`: autocast to it inside the model call."""
        return HostDenoiser(self, dtype)

    @torch.inference_mode(False)
    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> Cond:
        """Conditioning [N, ...] of the captions, each encoded by itself."""
        conds = [self.network.encode_caption(caption) for caption in captions]
        return placed(joined(conds), self.device)

    @torch.inference_mode(False)
    @torch.no_grad()
    def encode_unweighted(self, captions: Sequence[str]) -> Cond:
        """As `encode_text`, but brackets in captions are text as any other and weigh no words."""
        conds = [self.network.encode_caption(caption, weights=False) for caption in captions]
        return placed(joined(conds), self.device)

    @property
    def reads_pictures(self) -> bool:
        """Whether captions of samples with references are encoded by `encode_text_beside`."""
        return self.network.reads_pictures

    @torch.inference_mode(False)
    @torch.no_grad()
    def encode_text_beside(self, caption: str, pictures: Sequence[Tensor]) -> Cond:
        """Conditioning [1, ...] of a caption, read beside reference pictures [1, 3, H, W]."""
        found = self.network.encode_caption_beside(caption, [p.movedim(1, -1) for p in pictures])
        return {name: value.to(self.device).clone() for name, value in found.items()}

    @torch.inference_mode(False)
    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Latents [N, C, ...] of `pixels: [N, 3, H, W]` in [0, 1], one by one."""
        coded = [self.network.encode_image(row) for row in pixels.movedim(1, -1).split(1)]
        return torch.cat(coded).clone()

    @torch.inference_mode(False)
    @torch.no_grad()
    def encode_clip(self, frames: Tensor | Frames) -> Tensor:
        """Latent [C, f, h, w] of the frames [F, 3, H, W] of one clip."""
        return self.network.encode_image(frames.movedim(1, -1))[0].clone()

    @torch.inference_mode(False)
    @torch.no_grad()
    def encode_controls(self, controls: Sequence[tuple[str, Tensor]], target: Tensor | Frames) -> Cond:
        """Conditioning [1, ...] of a sample's controls, (role, [1, 3, H, W]) each, beside its frames [F, 3, H, W].

        Raises:
            ValueError: the family makes nothing of them.
        """
        given = [(role, pixels.movedim(1, -1)) for role, pixels in controls]
        return {k: v.clone() for k, v in self.network.encode_controls(given, target.movedim(1, -1)).items()}

    def encode_rate(self, fps: float) -> Cond:
        """Conditioning [1] of a clip of so many frames a second; empty where nothing needs to be said.

        At the rate that a family was made for, nothing is said, as in ComfyUI; families that are not told have their
        clips at any rate.
        """
        return {} if fps == self.frame_rate else self.network.told_rate(fps)

    @torch.inference_mode(False)
    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Pictures [N, 3, H, W] in [0, 1] of latents, one by one."""
        pixels = torch.cat([self.network.decode_latent(row) for row in latents.split(1)])
        return pixels.movedim(-1, 1).clamp(0, 1).clone()

    @torch.inference_mode(False)
    @torch.no_grad()
    def preview_latents(self, latents: Tensor) -> Tensor:
        """Pictures [N, 3, h, w], a pixel per latent position: the host may move the network away to decode."""
        return torch.cat([self.network.preview_latent(row) for row in latents.split(1)]).movedim(-1, 1)

    def lora_tensors(self, adapter: AdapterState) -> dict[str, Tensor]:
        """Tensors of a LoRA file, named by the host's own modules: its stock loader reads any family so."""
        tensors = with_dora_scale(folded(adapter), self.network.weight)
        return NAMES[self.lora_names](tensors)

    def save_lora(self, adapter: AdapterState, metadata: Mapping[str, str], path: Path) -> None:
        """Write `adapter` to `path` (safetensors).

        Raises:
            OSError: the folder cannot be written.
        """
        tensors = self.lora_tensors(adapter)
        write_tensors(path, tensors, lora_header(tensors, metadata))

    def read_lora(self, path: Path) -> AdapterState:
        """An adapter that acts as the LoRA file `path` does in the host's stock loader."""
        network = self.network
        known = {name: (Place(module, rows, None, swapped),)
                 for name, (module, rows, swapped) in network.lora_keys().items()}  # fmt: skip
        return read_lora(path, network.module, known, network.weight, network.converted_lora)


class HostDenoiser(Denoiser):
    """A `Denoiser` on a `HostModel`: a host answers with its estimate of x0."""

    def __init__(self, model: HostModel, dtype: torch.dtype | None) -> None:
        self.prediction: Prediction = model.prediction
        self.schedule: Schedule = model.schedule
        self.module: nn.Module = model.network.module
        self._model = model
        self._network = model.network
        self._autocast = None if dtype == model.dtype else dtype
        self._unwatched: ExitStack | None = None  # open for training, and not looked at yet

    @contextmanager
    def opened(
        self, training: bool = False, checkpointing: bool = False, regions: Regions | None = None
    ) -> Iterator[None]:
        """The network is ready inside, see `Denoiser.opened`."""
        with self._network.opened(training), ExitStack() as stack:
            if training:
                stack.enter_context(sound_attention())
            if regions is not None:
                stack.enter_context(regions.attached())
            if checkpointing:
                stack.enter_context(recomputed(self.module))
            self._unwatched = stack if training else None
            try:
                yield
            finally:
                self._unwatched = None

    def denoised(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """The host's estimate of x0 at `x: [B, C, ...]`, `sigma: [B]`, in the dtype of `x`."""
        return self._estimate(x, sigma, cond).to(x.dtype)

    def velocity(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """``dx/dsigma`` there; at sigma = 0, where the estimate of x0 says nothing, nearly so."""
        denoised = self._estimate(x, sigma, cond)
        return ((x - denoised) / expand(sigma.clamp(min=SMALLEST_SIGMA), x)).to(x.dtype)

    def predict(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """The same in the form that the network was trained in."""
        return from_velocity(self.prediction, x, sigma, self.velocity(x, sigma, cond))

    def loss_weight(self, sigma: Tensor) -> Tensor | None:
        """See `Denoiser.loss_weight`."""
        return self._network.loss_weight(sigma)

    def _estimate(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        own, sigma = separated(cond), sigma.clamp(min=SMALLEST_SIGMA)
        if self._unwatched is not None and torch.is_grad_enabled():
            self._watch(x[:1], sigma[:1], own[:1])
        with nullcontext() if self._autocast is None else torch.autocast(x.device.type, self._autocast):
            return self._network.denoised(x, sigma, own)

    def _watch(self, x: Tensor, sigma: Tensor, own: Sequence[Mapping[str, Tensor]]) -> None:
        """Look once whether the network overwrites what it has read, and allow for it until the network is closed."""
        stack, self._unwatched = self._unwatched, None

        def velocity() -> Tensor:
            with nullcontext() if self._autocast is None else torch.autocast(x.device.type, self._autocast):
                return x - self._network.denoised(x, sigma, own)

        if stack is not None:
            stack.enter_context(writes_allowed(self.module, velocity, x.device))


def flow_schedule(network: HostNetwork) -> FlowSchedule:
    """The shift that a flow model's noise levels have.

    Raises:
        ValueError: they are of another form.
    """
    u = torch.linspace(0.05, 1, 20, dtype=torch.float64)
    sigma = network.flow_sigma(u)
    half = float(network.flow_sigma(torch.tensor(0.5, dtype=torch.float64)))
    schedule = FlowSchedule(half / (1 - half))  # sigma = s u / (1 + (s - 1) u) at u = 1/2 is s / (1 + s)
    if (schedule.sigma(u) - sigma).abs().max() > 1e-4:
        raise ValueError(f"model must have the noise levels of a shift, got {sigma.tolist()}")
    return schedule
