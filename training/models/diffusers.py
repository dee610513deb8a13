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
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...samplers.schedules import FlowSchedule, Schedule, TableSchedule
from ..forms import Cond, Denoiser, Prediction, expand
from ..lora.adapter import AdapterState
from ..lora.file import folded, kohya_names, peft_names, with_dora_scale, write_tensors
from .folder import Network, PipelineFolder

logger = logging.getLogger(__name__)

ATTENTION = r"attn2?\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)$"
"""Attention projections of SD3 and Flux blocks."""
TokenLimits = Mapping[str, int | None]


def noise_process(config: Mapping[str, Any]) -> tuple[Prediction, Schedule]:
    """Return what a model with this scheduler configuration predicts, and its noise schedule.

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
def visiting(module: Network, device: torch.device) -> Iterator[Network]:
    """`module` is on `device` inside and goes home after: encoders hold no accelerator memory in training."""
    home = module.device
    module.to(device)
    try:
        yield module
    finally:
        module.to(home)


class DiffusersModel(ABC):
    """What all pipeline folders share; implements `training.model.ModelSource`.

    The network lives on `device`, encoders and autoencoder on the CPU, from where they visit it.
    """

    pipelines: ClassVar[tuple[str, ...]]
    """Class names in ``model_index.json`` that this family reads."""
    component: ClassVar[str] = "transformer"
    """Name of the denoising network in the folder, and prefix of its LoRA keys in diffusers."""
    encoders: ClassVar[TokenLimits]
    """Text encoders, each with the most tokens that it is given; None: as many as its tokenizer allows."""
    optional: ClassVar[tuple[str, ...]] = ()
    """Those of them that a folder may lack."""
    packing: ClassVar[int] = 1
    """Latent positions per axis that the caller of the network packs into one token."""
    default_lora_targets: tuple[str, ...] = (ATTENTION,)

    def __init__(self, folder: PipelineFolder, device: torch.device, dtype: torch.dtype) -> None:
        self.name = folder.path.resolve().name
        self.folder = folder
        self.device = device
        self.dtype = dtype
        scheduler = folder.config("scheduler")
        self.timesteps = int(scheduler.get("num_train_timesteps", 1000))
        self.prediction, self.schedule = noise_process(scheduler)
        self.module = folder.network(self.component, dtype).to(device)
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

    @abstractmethod
    def encode_caption(self, caption: str) -> dict[str, Tensor]:
        """Conditioning [1, ...] of one caption."""

    @abstractmethod
    def output(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """The network's raw output at `x` (flow or VE state), `sigma: [B]`."""

    def lora_tensors(self, adapter: AdapterState) -> dict[str, Tensor]:
        """Tensors of a LoRA file, named for diffusers' `load_lora_weights` and ComfyUI's loader alike."""
        return peft_names(self.portable(adapter), self.component)

    def portable(self, adapter: AdapterState) -> dict[str, Tensor]:
        """The adapter's tensors in a form that needs no settings beside them."""
        return with_dora_scale(folded(adapter), lambda name: self.module.get_submodule(name).weight)

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of the folder's weights and settings."""
        return self.folder.digest()

    @property
    def encoder_fingerprint(self) -> str:
        """Hex digest of the folder: its encoders are in it."""
        return self.fingerprint

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
        config = self.vae.config
        raw = latents / config.scaling_factor + (config.get("shift_factor") or 0.0)
        with visiting(self.vae, self.device) as vae:
            decoded = [vae.decode(row.to(self.device, vae.dtype)).sample for row in raw.split(1)]
        return (torch.cat(decoded) / 2 + 0.5).clamp(0, 1).to(latents.dtype)

    def preview_latents(self, latents: Tensor) -> Tensor:
        """The same: the network stays where it is while the autoencoder visits its device."""
        return self.decode_latents(latents)

    def save_lora(self, adapter: AdapterState, metadata: Mapping[str, str], path: Path) -> None:
        """Write `adapter` to `path` (safetensors); it is at scale 1 there, see `training.model.folded`.

        Raises:
            OSError: the folder cannot be written.
        """
        write_tensors(path, self.lora_tensors(adapter), metadata)


class DiffusersDenoiser:
    """`training.denoiser.Denoiser` on the network of a `DiffusersModel`."""

    def __init__(self, model: DiffusersModel, dtype: torch.dtype | None) -> None:
        if dtype not in (None, model.dtype, torch.bfloat16, torch.float16):
            raise ValueError(f"dtype must be bfloat16, float16 or the model's {model.dtype}, got {dtype}")
        self.prediction: Prediction = model.prediction
        self.schedule: Schedule = model.schedule
        self.module: nn.Module = model.module
        self._model = model
        self._autocast = None if dtype == model.dtype else dtype

    @contextmanager
    def opened(self, training: bool = False, checkpointing: bool = False) -> Iterator[None]:
        """The network is always ready; inside it checkpoints its activations where asked to.

        Raises:
            ValueError: `checkpointing` for a network that cannot do it.
        """
        if not checkpointing:
            yield
            return
        module: Any = self.module
        if not hasattr(module, "enable_gradient_checkpointing"):
            raise ValueError(
                f"gradient_checkpointing must be off for {type(module).__name__}, which does not support it"
            )
        module.enable_gradient_checkpointing()
        try:
            yield
        finally:
            module.disable_gradient_checkpointing()

    def predict(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """Return the raw prediction at `x: [B, C, h, w]`, `sigma: [B]`, in the dtype of `x`."""
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


class StableDiffusion3(DiffusersModel):
    """SD3 and SD3.5: rectified flow, joint attention over CLIP, CLIP and (where present) T5 tokens."""

    pipelines = ("StableDiffusion3Pipeline",)
    encoders: ClassVar[TokenLimits] = {"text_encoder": None, "text_encoder_2": None, "text_encoder_3": 256}
    optional = ("text_encoder_3",)

    @property
    def largest_side(self) -> int | None:
        """Longest side in pixels for which the position table has entries."""
        return int(self.module.config.pos_embed_max_size) * self.size_multiple

    def encode_caption(self, caption: str) -> dict[str, Tensor]:
        """``context [1, L, D]`` and ``pooled [1, P]`` of one caption.

        Without a T5 encoder the context is the CLIP tokens alone, as in ComfyUI; the pipeline does the same
        with `max_sequence_length=0`, and appends zero tokens otherwise.
        """
        states, pooled = zip(
            *(inner_states(self.texts[name], caption) for name in ("text_encoder", "text_encoder_2")),
            strict=True,
        )
        context = torch.cat(states, dim=-1)
        context = F.pad(context, (0, self.module.config.joint_attention_dim - context.shape[-1]))
        if t5 := self.texts.get("text_encoder_3"):
            context = torch.cat([context, t5(caption)[0]], dim=1)
        return {"context": context, "pooled": torch.cat(pooled, dim=-1)}

    def output(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """Velocity at `x: [B, C, h, w]`."""
        result: Tensor = self.module(
            x.to(self.dtype),
            timestep=sigma * self.timesteps,
            encoder_hidden_states=cond["context"],
            pooled_projections=cond["pooled"],
            return_dict=False,
        )[0]
        return result


class Flux(DiffusersModel):
    """Flux.1 schnell and dev: rectified flow over packed latents, T5 tokens and the CLIP summary."""

    pipelines = ("FluxPipeline",)
    encoders: ClassVar[TokenLimits] = {"text_encoder": None, "text_encoder_2": 512}
    packing = 2
    guidance: ClassVar[float] = 3.5
    """What dev's distilled guidance is told, in training and sampling alike; the pipeline's default."""

    def encode_caption(self, caption: str) -> dict[str, Tensor]:
        """``context [1, L, D]`` and ``pooled [1, P]`` of one caption."""
        return {
            "context": self.texts["text_encoder_2"](caption)[0],
            "pooled": self.texts["text_encoder"](caption).pooler_output,
        }

    def output(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """Velocity at `x: [B, C, h, w]`; the network sees tokens of 2 x 2 latent positions."""
        rows, columns = x.shape[2] // 2, x.shape[3] // 2
        places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
        image_ids = F.pad(places, (1, 0)).to(x)  # [rows * columns, 3]: 0, row, column
        guided = self.module.config.guidance_embeds
        tokens: Tensor = self.module(
            F.pixel_unshuffle(x, 2).flatten(2).mT.to(self.dtype),  # [B, C, h, w] -> [B, rows * columns, 4 C]
            timestep=sigma,  # times 1000 inside
            guidance=torch.full_like(sigma, self.guidance) if guided else None,
            encoder_hidden_states=cond["context"],
            pooled_projections=cond["pooled"],
            img_ids=image_ids,
            txt_ids=image_ids.new_zeros(cond["context"].shape[1], 3),
            return_dict=False,
        )[0]
        return F.pixel_shuffle(tokens.mT.unflatten(2, (rows, columns)), 2)


class StableDiffusion(DiffusersModel):
    """Stable Diffusion 1.x and 2.x: a UNet that predicts epsilon or v, cross-attention over CLIP tokens."""

    pipelines = ("StableDiffusionPipeline",)
    component = "unet"
    encoders: ClassVar[TokenLimits] = {"text_encoder": None}
    default_lora_targets = (r"attn[12]\.(to_[qkv]|to_out\.0)$",)

    def encode_caption(self, caption: str) -> dict[str, Tensor]:
        """``context [1, L, D]`` of one caption."""
        return {"context": self.texts["text_encoder"](caption)[0]}

    def added_conditions(self, x: Tensor, cond: Cond) -> dict[str, Tensor] | None:
        """What the network is told beside the text; nothing here."""
        return None

    def output(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """Epsilon or v at the VE state `x: [B, C, h, w]`; the network sees ``x / sqrt(1 + sigma^2)``."""
        scaled = x * (1 + expand(sigma, x) ** 2).rsqrt()
        result: Tensor = self.module(
            scaled.to(self.dtype),
            self.schedule.u(sigma) * self.timesteps - 1,  # fractional between training timesteps
            encoder_hidden_states=cond["context"],
            added_cond_kwargs=self.added_conditions(x, cond),
            return_dict=False,
        )[0]
        return result

    def lora_tensors(self, adapter: AdapterState) -> dict[str, Tensor]:
        """Tensors of a LoRA file: for UNets, kohya's names are the one form that both loaders read."""
        return kohya_names(self.portable(adapter))


class StableDiffusionXL(StableDiffusion):
    """SDXL base: a UNet over the tokens of two CLIP encoders, told the size of the picture."""

    pipelines = ("StableDiffusionXLPipeline",)
    encoders: ClassVar[TokenLimits] = {"text_encoder": None, "text_encoder_2": None}

    def encode_caption(self, caption: str) -> dict[str, Tensor]:
        """``context [1, L, D]`` of both encoders and ``pooled [1, P]`` of the second."""
        first, _ = inner_states(self.texts["text_encoder"], caption)
        second, pooled = inner_states(self.texts["text_encoder_2"], caption)
        return {"context": torch.cat([first, second], dim=-1), "pooled": pooled}

    def added_conditions(self, x: Tensor, cond: Cond) -> dict[str, Tensor] | None:
        """The text's summary, and the sizes: original and wanted are those of `x`, nothing is cropped."""
        height, width = (side * self.scale_factor for side in x.shape[2:])
        sizes = x.new_tensor([height, width, 0, 0, height, width]).expand(len(x), -1)
        return {"text_embeds": cond["pooled"], "time_ids": sizes}


FAMILIES: tuple[type[DiffusersModel], ...] = (StableDiffusion3, Flux, StableDiffusion, StableDiffusionXL)


@torch.inference_mode(False)
def load_diffusers(
    folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> DiffusersModel:
    """Load a pipeline folder, its weights as `dtype`, frozen; the network goes to `device`.

    Raises:
        ValueError: the folder is missing, is of no known family, or lacks a part; the message names both.
    """
    pipeline = PipelineFolder.read(Path(folder))
    return family_of(pipeline)(pipeline, torch.device(device), dtype)


def check_diffusers(folder: str | Path) -> None:
    """Look whether `load_diffusers` would find what it needs, without reading any weights.

    Raises:
        ValueError: as `load_diffusers`.
    """
    pipeline = PipelineFolder.read(Path(folder))
    family = family_of(pipeline)
    pipeline.config("scheduler")
    texts = [name for name in family.encoders if pipeline.has(name) or name not in family.optional]
    for name in (family.component, "vae", *texts):
        pipeline.weights(name)


def family_of(pipeline: PipelineFolder) -> type[DiffusersModel]:
    """The family that reads this pipeline.

    Raises:
        ValueError: there is none.
    """
    for family in FAMILIES:
        if pipeline.pipeline in family.pipelines:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.pipelines)
    raise pipeline.fault(f"it must hold one of {known}, but holds a {pipeline.pipeline}")
