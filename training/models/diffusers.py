"""Models from diffusers pipeline folders: SD3 and Flux (flow), Stable Diffusion 1.x, 2.x and XL (epsilon, v).

`load_diffusers` reads ``model_index.json`` and hands the folder to the family that knows the pipeline. A
new family is one subclass of `DiffusersModel` in `FAMILIES`: how text is encoded, how the network is
called, how LoRA keys are named. Only local safetensors files are read; nothing is ever downloaded.
"""

from __future__ import annotations

import logging
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ...samplers.schedules import FlowSchedule, Schedule, TableSchedule
from ..conditioning import Cond
from ..files import lora_header, write_tensors
from ..forms import Prediction
from ..lora.adapter import AdapterState
from ..lora.file import NAMES, folded, with_dora_scale
from ..lora.reading import read_lora
from .compiled import Regions
from .differentiable import sound_attention
from .folder import Network, PipelineFolder
from .source import BaseFile, Denoiser
from .stored import made_plain, store
from .swap import Swap, can_swap
from .visits import decoding, fetched, fetched_in_turn, visiting, weights_in

logger = logging.getLogger(__name__)

ATTENTION = r"attn2?\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)$"
"""Attention projections of SD3 and Flux blocks."""
Weights = Literal["full", "float8", "int8", "nf4"]
"""How the matrices of a network's blocks are stored: as they are loaded, or as `models.stored.FORMS`."""
TokenLimits = Mapping[str, int | None]
PREVIEW_TILE = 256
"""Side in pixels of the tiles that pictures are decoded in while a run trains, to need less memory than that."""
CROWDED = 20
"""A network beside which the decoder's weights would be more than one part in so many has them visit part by part."""


def noise_process(config: Mapping[str, Any]) -> tuple[Prediction, Schedule]:
    """What a model with this scheduler configuration predicts, and its noise schedule.

    Dynamic shifting (Flux dev: the shift grows with the picture) is fixed at the value for the largest
    picture, ``exp(max_shift)``, which is the value at 1024 x 1024 pixels and ComfyUI's default.

    Raises:
        ValueError: a prediction type that is neither flow, epsilon nor v.
    """
    if str(config.get("_class_name", "")).startswith("FlowMatch"):
        shift = float(config.get("shift", 1.0))
        if config.get("use_dynamic_shifting"):
            shift = math.exp(config.get("max_shift", 1.15))
            logger.info("dynamic shifting is fixed at exp(max_shift) = %.3f", shift)
        return "flow", FlowSchedule(shift)
    predictions: dict[str, Prediction] = {"epsilon": "epsilon", "v_prediction": "v"}
    kind = config.get("prediction_type", "epsilon")
    if kind not in predictions:
        raise ValueError(
            f"the scheduler's prediction_type must be one of {', '.join(predictions)}, got {kind!r}"
        )
    from diffusers import EulerDiscreteScheduler

    # Any discrete scheduler's betas make the same table; this class also bounds a zero terminal SNR.
    table = EulerDiscreteScheduler.from_config(dict(config)).alphas_cumprod
    return predictions[kind], TableSchedule.from_alphas_cumprod(table.double())


@contextmanager
def in_tiles(vae: Network, side: int) -> Iterator[None]:
    """`vae`, if it can, decodes latents larger than `side` positions in tiles of that side, which take little memory.

    Tiles are blended where they meet; a picture differs a little from one that was decoded whole.
    """
    if not hasattr(vae, "tile_latent_min_size"):
        yield
        return
    names = ("use_tiling", "tile_latent_min_size", "tile_sample_min_size")
    before = {name: getattr(vae, name) for name in names}
    scale = vae.tile_sample_min_size / vae.tile_latent_min_size
    vae.use_tiling, vae.tile_latent_min_size, vae.tile_sample_min_size = True, side, int(side * scale)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(vae, name, value)


class DiffusersModel(ABC):
    """What all pipeline folders share; implements `training.models.source.ModelSource`.

    The network lives on `device`, encoders and autoencoder on the CPU, from where they visit it.
    """

    pipelines: ClassVar[tuple[str, ...]]
    """Class names in ``model_index.json`` that this family reads."""
    component: ClassVar[str] = "transformer"
    """Name of the denoising network in the folder."""
    encoders: ClassVar[TokenLimits]
    """Text encoders, each with the most tokens that it is given; None: as many as its tokenizer allows."""
    optional: ClassVar[tuple[str, ...]] = ()
    """Those of them that a folder may lack."""
    packing: ClassVar[int] = 1
    """Latent positions per axis that the caller of the network packs into one token."""
    default_lora_targets: tuple[str, ...] = (ATTENTION,)
    lora_names: str = "diffusers"
    quantised: bool = False
    """Whether the network's matrices arrived in fewer bits."""
    _on_paper: bool = False

    def __init__(
        self,
        folder: PipelineFolder,
        device: torch.device,
        dtype: torch.dtype,
        weights: Weights = "full",
        swap: bool = False,
    ) -> None:
        self.name = folder.path.resolve().name
        self.family = folder.pipeline
        self.folder = folder
        self.device = device
        self.dtype = dtype
        scheduler = folder.config("scheduler")
        self.timesteps = int(scheduler.get("num_train_timesteps", 1000))
        self.prediction, self.schedule = noise_process(scheduler)
        self.module = folder.network(self.component, dtype)
        self.weights = weights
        self.quantised = made_plain(self.module)
        if weights != "full":
            if self.quantised:
                raise ValueError(
                    f"weights must be full for {self.name}, whose {self.component} is quantised already, got {weights}"
                )
            store(self.module, weights, device)
        if swap and not can_swap(self.module):
            raise ValueError(
                f"swap_weights must be off for {type(self.module).__name__}, whose blocks are not repeated whole"
            )
        self.swap = Swap(self.module, device) if swap else None
        if not swap:
            self.module.to(device)
        # Half precision saves nothing here that lasts, and some autoencoders overflow in float16.
        self.vae = folder.network("vae", torch.promote_types(dtype, torch.float32))
        self.texts = {
            name: TextEncoder(folder, name, dtype, limit)
            for name, limit in self.encoders.items()
            if folder.has(name) or name not in self.optional
        }
        expected = self.latent_channels * self.packing**2
        if self.module.config.in_channels != expected:
            raise ValueError(
                f"model folder {folder.path}: {self.component} must take {expected} channels, "
                f"got {self.module.config.in_channels}; inpainting and control models are not supported"
            )

    @contextmanager
    def on_paper(self) -> Iterator[None]:
        """Inside, under FakeTensorMode, no weight is moved: blocks stay, the decoder takes memory alone."""
        self._on_paper = True
        try:
            with nullcontext() if self.swap is None else self.swap.paused():
                yield
        finally:
            self._on_paper = False

    @property
    def decoder(self) -> nn.Module:
        """What `preview_latents` computes with beside the network."""
        return self.vae

    @property
    def crowded(self) -> bool:
        """Whether the decoder's weights are too much to visit the network's device at once in training."""
        network = weights_in([self.module])
        on_device = sum(t.nbytes for t in network)
        return (
            self.swap is not None
            or CROWDED * sum(t.nbytes for t in weights_in(decoding(self.vae))) > on_device
        )

    @property
    def weight_offers(self) -> tuple[str, ...]:
        """How the network's weights could take less memory than they do: see `plan.memory`."""
        stored = ("float8", "nf4") if self.weights == "full" and not self.quantised else ()
        return stored + (("swap",) if self.swap is None and can_swap(self.module) else ())

    @abstractmethod
    def encode_caption(self, caption: str) -> dict[str, Tensor]:
        """Conditioning [1, ...] of one caption."""

    @abstractmethod
    def output(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """The network's raw output at `x` (flow or VE state), `sigma: [B]`."""

    def lora_tensors(self, adapter: AdapterState) -> dict[str, Tensor]:
        """Tensors of a LoRA file, named for diffusers' `load_lora_weights` and ComfyUI's loader alike."""
        return NAMES[self.lora_names](self.portable(adapter))

    def portable(self, adapter: AdapterState) -> dict[str, Tensor]:
        """The adapter's tensors in a form that needs no settings beside them."""
        return with_dora_scale(folded(adapter), lambda name: self.module.get_submodule(name).weight)

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of the folder's weights and settings, and of the form that the weights are stored in."""
        digest = self.folder.digest()
        return digest if self.weights == "full" else f"{digest}-{self.weights}"

    @property
    def base_file(self) -> BaseFile | None:
        """The network's weights, if they are one file; the folder's name says which model it is."""
        files = self.folder.weights(self.component)
        return BaseFile(self.name, files[0]) if len(files) == 1 else None

    @property
    def encoder_fingerprint(self) -> str:
        """Hex digest of the folder: its encoders are in it."""
        return self.folder.digest()

    @property
    def scale_factor(self) -> int:
        """Pixels per latent position and axis."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def size_multiple(self) -> int:
        """Picture sides must be multiples of this many pixels."""
        return self.scale_factor * self.packing * int(self.module.config.get("patch_size") or 1)

    @property
    def default_resolution(self) -> int:
        """Side in pixels of the square picture that the model was made for."""
        return self.scale_factor * int(self.module.config.get("sample_size") or 128)

    @property
    def largest_side(self) -> int | None:
        """Longest side in pixels that the network can take, None: any."""
        return None

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return int(self.vae.config.latent_channels)

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Shape (C, h, w) of one latent of a picture of `height` x `width` pixels.

        Raises:
            ValueError: a side is not a positive multiple of `size_multiple`, or too long for the network.
        """
        limit = self.largest_side
        for side, value in (("height", height), ("width", width)):
            if value <= 0 or value % self.size_multiple:
                raise ValueError(
                    f"{side} must be a multiple of {self.size_multiple} for {self.name}, got {value}"
                )
            if limit is not None and value > limit:
                raise ValueError(f"{side} must be at most {limit} for {self.name}, got {value}")
        return self.latent_channels, height // self.scale_factor, width // self.scale_factor

    def denoiser(self, dtype: torch.dtype | None = None) -> Denoiser:
        """The network as training and samplers see it; `dtype` bfloat16 or float16: autocast to it inside."""
        return DiffusersDenoiser(self, dtype)

    @torch.inference_mode(False)
    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> Cond:
        """Conditioning [N, ...] of the captions, each encoded by itself: rows do not depend on each other."""
        with ExitStack() as visits:
            for text in self.texts.values():
                text.warn_of_cuts(captions)
                visits.enter_context(visiting(text.encoder, self.device))
            rows = [self.encode_caption(caption) for caption in captions]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    @torch.inference_mode(False)
    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Latents [N, C, h, w] of `pixels: [N, 3, H, W]` in [0, 1]: the encoder's mean, one by one."""
        config = self.vae.config
        with visiting(self.vae, self.device) as vae:
            coded = [vae.encode(picture.to(self.device, vae.dtype) * 2 - 1) for picture in pixels.split(1)]
        raw = torch.cat([c.latents if "latents" in c else c.latent_dist.mode() for c in coded])
        return ((raw - (config.get("shift_factor") or 0.0)) * config.scaling_factor).to(pixels.dtype)

    @torch.inference_mode(False)
    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Pictures [N, 3, H, W] in [0, 1] of `latents: [N, C, h, w]`, one by one."""
        with fetched(decoding(self.vae), self.device, self._on_paper):
            return self._decoded(latents)

    @torch.inference_mode(False)
    @torch.no_grad()
    def preview_latents(self, latents: Tensor) -> Tensor:
        """The same, large pictures in tiles: the network stays where it is while the decoder visits its device.

        Beside a network that is not much larger than it, the decoder visits part by part: the same pictures.
        """
        visit = fetched_in_turn if self.crowded else fetched
        with (
            in_tiles(self.vae, PREVIEW_TILE // self.scale_factor),
            visit(decoding(self.vae), self.device, self._on_paper),
        ):
            return self._decoded(latents)

    def _decoded(self, latents: Tensor) -> Tensor:
        config, vae = self.vae.config, self.vae
        raw = latents / config.scaling_factor + (config.get("shift_factor") or 0.0)
        pictures = []
        for row in raw.split(1):
            # Each goes to where the latents are: of many pictures none waits on the device.
            picture = vae.decode(row.to(self.device, vae.dtype)).sample.to(latents.device)
            pictures.append((picture / 2 + 0.5).clamp(0, 1).to(latents.dtype))
        return torch.cat(pictures)

    def save_lora(self, adapter: AdapterState, metadata: Mapping[str, str], path: Path) -> None:
        """Write `adapter` to `path` (safetensors); it is at scale 1 there, see `training.lora.file.folded`.

        Raises:
            OSError: the folder cannot be written.
        """
        tensors = self.lora_tensors(adapter)
        write_tensors(path, tensors, lora_header(tensors, metadata))

    def read_lora(self, path: Path) -> AdapterState:
        """An adapter that acts as the LoRA file `path`."""
        return read_lora(path, self.module)


class DiffusersDenoiser(Denoiser):
    """A `Denoiser` on the network of a `DiffusersModel`."""

    def __init__(self, model: DiffusersModel, dtype: torch.dtype | None) -> None:
        if dtype not in (None, model.dtype, torch.bfloat16, torch.float16):
            raise ValueError(f"dtype must be bfloat16, float16 or the model's {model.dtype}, got {dtype}")
        self.prediction: Prediction = model.prediction
        self.schedule: Schedule = model.schedule
        self.module: nn.Module = model.module
        self._model = model
        self._autocast = None if dtype == model.dtype else dtype

    @contextmanager
    def opened(
        self, training: bool = False, checkpointing: bool = False, regions: Regions | None = None
    ) -> Iterator[None]:
        """The network is always ready; inside it checkpoints its activations where asked to.

        Raises:
            ValueError: `checkpointing` for a network that cannot do it, or training without it with swapped weights.
        """
        if training and self._model.swap is not None and not checkpointing:
            raise ValueError(
                "gradient_checkpointing must be on for a model with swap_weights, got off: without it a backward pass "
                "keeps the weights of all blocks"
            )
        module: Any = self.module
        if checkpointing and not hasattr(module, "enable_gradient_checkpointing"):
            raise ValueError(
                f"gradient_checkpointing must be off for {type(module).__name__}, which does not support it"
            )
        with ExitStack() as stack:
            if training:
                stack.enter_context(sound_attention())
            if regions is not None:
                stack.enter_context(regions.attached())
            if checkpointing:
                module.enable_gradient_checkpointing()
                stack.callback(module.disable_gradient_checkpointing)
            yield

    def predict(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """The raw prediction at `x: [B, C, h, w]`, `sigma: [B]`, in the dtype of `x`."""
        model = self._model
        cond = {name: value.to(model.device, model.dtype) for name, value in cond.items()}
        with nullcontext() if self._autocast is None else torch.autocast(x.device.type, self._autocast):
            return model.output(x, sigma, cond).to(x.dtype)


class TextEncoder:
    """A tokenizer with its text encoder."""

    def __init__(self, folder: PipelineFolder, name: str, dtype: torch.dtype, limit: int | None) -> None:
        self.name = name
        self.tokenizer = folder.tokenizer(name.replace("text_encoder", "tokenizer"))
        self.encoder = folder.network(name, dtype)
        self.length = min(int(self.tokenizer.model_max_length), limit or sys.maxsize)
        """Tokens of every caption: longer ones are cut, shorter ones padded."""

    def __call__(self, caption: str, **options: bool) -> Any:
        """The encoder's output for one caption; every tensor in it starts with an axis of 1."""
        tokens = self.tokenizer(
            [caption], padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        )
        return self.encoder(tokens.input_ids.to(self.encoder.device), **options)

    def warn_of_cuts(self, captions: Sequence[str]) -> None:
        """Log how many captions are longer than `length` tokens."""
        long = [c for c in captions if len(self.tokenizer(c).input_ids) > self.length]
        if long:
            logger.warning(
                "%s: %d captions are cut at %d tokens, the first: %.60r",
                self.name,
                len(long),
                self.length,
                long[0],
            )


def inner_states(text: TextEncoder, caption: str) -> tuple[Tensor, Tensor]:
    """States [1, L, D] before the last layer of a CLIP encoder, and its first output [1, ...]."""
    out = text(caption, output_hidden_states=True)
    return out.hidden_states[-2], out[0]
