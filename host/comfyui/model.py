"""A MODEL of ComfyUI as a plain object that can be computed with and trained through, by the host's own means.

Noise levels, conditioning, weight casting, offloading and patches stay the host's; what a MODEL is made of is not
touched, and what a block of work needs is undone at its end.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
from comfy import (
    lora,
    lora_convert,
    model_management,
    model_patcher,
    model_sampling,
    patcher_extension,
    samplers,
    sd,
    utils,
)
from comfy.ldm.wan.vae import WanVAE
from comfy.model_base import WAN21
from torch import Tensor, nn

from . import controls, given, pieces
from .conditioning import Row, as_given, concatable, conditioning_rows
from .sampling import model_noise_levels
from .trainable import (
    as_normal_tensors,
    differentiable_attention,
    differentiable_kernels,
    fetched_on_use,
    forget_fetched,
    in_training,
    is_plain,
    recast_in_backward,
    sound_backends,
    tensors_in,
    weights_on_paper,
)

READERS = {"QwenImage": ("comfy_extras.nodes_qwen", "TextEncodeQwenImageEditPlus", 3)}
"""By family, the node that encodes a caption beside pictures (image1, image2 ...), and how many it takes."""
PREFIX = "diffusion_model"
"""Where the network lies in the host's model, and what its LoRA keys begin with."""

Prediction = Literal["flow", "epsilon", "v"]
OWN_OUTPUT = ("COSMOS_RFLOW", "EDM")
"""The host's kinds of sampling that count as epsilon and are not, see `ComfyModel.loss_weight`."""


class ComfyModel:
    """A MODEL with, perhaps, its CLIP and VAE.

    Args:
        model: a ModelPatcher of any loader.
        guidance: what captions carry for models that were distilled to take it as an input; 0: the host's own.
        clip_vision: looks at the frames that a clip is given, for image-to-video models that are told what it sees.

    Raises:
        ValueError: a model that does not remove noise, and so cannot be trained to.
    """

    def __init__(
        self, model: Any, clip: Any = None, vae: Any = None, guidance: float = 0.0, clip_vision: Any = None
    ) -> None:
        check_kind(model)
        self.patcher = model
        self.clip = clip
        self.vae = vae
        self.guidance = guidance
        self.clip_vision = clip_vision
        levels = model_noise_levels(model)
        self.prediction = prediction_of(levels.sampling)
        self.table: Tensor = levels.table
        self._flow_sigma = levels.flow_sigma
        self._options: dict[str, Any] = {}
        self._uses: dict[str, bool] = {}

    # --- facts ----------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The family, as the host names it."""
        return type(self.patcher.model).__name__

    @property
    def path(self) -> Path | None:
        """The file that it was loaded from; None where the host does not keep that: 0.3.64, or other loaders."""
        _, given, *_ = getattr(self.patcher, "cached_patcher_init", None) or (None, ())
        named = given[0] if given and isinstance(given[0], str) else ""
        return Path(named) if Path(named).is_file() else None

    @property
    def module(self) -> nn.Module:
        """The network."""
        return cast(nn.Module, self.patcher.model.diffusion_model)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return torch.device(self.patcher.load_device)

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        model = self.patcher.model
        return cast(torch.dtype, model.manual_cast_dtype or model.get_dtype())

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return int(self.patcher.model.latent_format.latent_channels)

    @property
    def frames(self) -> bool:
        """Whether latents have an axis of frames, as those of video models."""
        return int(getattr(self.patcher.model.latent_format, "latent_dimensions", 2)) == 3

    @property
    def scale_factor(self) -> int:
        """Pixels per latent position and axis."""
        if self.vae is not None:
            return int(self.vae.spacial_compression_encode())
        return int(getattr(self.patcher.model.latent_format, "spacial_downscale_ratio", 8))

    @property
    def patch_size(self) -> int:
        """Latent positions per axis that the network takes as one."""
        size = getattr(self.module, "patch_size", None) or 1
        return int(size[-1] if isinstance(size, (tuple, list)) else size)

    def clip_frames(self, most: int) -> int:
        """Frames of the longest clip of at most `most` that the autoencoder takes whole; 1: pictures alone."""
        down, up = getattr(self.vae, "downscale_ratio", 1), getattr(self.vae, "upscale_ratio", 1)
        pictures = getattr(self.vae, "not_video", False) or not self.frames
        if pictures or not isinstance(down, tuple) or not isinstance(up, tuple):
            return 1
        return next((n for n in range(most, 1, -1) if up[0](down[0](n)) == n), 1)

    def flow_sigma(self, u: Tensor) -> Tensor:
        """Sigma of a flow model at fractions of the trajectory."""
        return self._flow_sigma(u)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The network's weights as they were loaded, and after them the tensors of every patch on them."""
        for name, weight in self.module.state_dict().items():
            own = self._unpatched(f"{PREFIX}.{name}", weight)
            yield name, getattr(own, "_qdata", own)  # of a weight with a layout of its own, what is stored
        for name, patches in self.patcher.patches.items():
            yield from tensors_in(patches, f"{name}.patches")

    def weight(self, module: str) -> Tensor:
        """The weight of a module as it was loaded, patches not included."""
        weight = self._unpatched(f"{PREFIX}.{module}.weight", self.module.get_submodule(module).weight)
        return weight if is_plain(weight) else cast(Any, weight).dequantize()

    def lora_keys(self) -> dict[str, tuple[str, tuple[int, int] | None, bool]]:
        """What the stock loader takes for a layer: name in a LoRA file -> module, rows of it, halves exchanged."""
        keys = {}
        for name, value in lora.model_lora_keys_unet(self.patcher.model, {}).items():
            key, offset, change = (value, None, None) if isinstance(value, str) else (*value, None, None)[:3]
            module = key.removeprefix(f"{PREFIX}.").removesuffix(".weight")
            plain = change is None or change is utils.swap_scale_shift
            if key.endswith(".weight") and plain and (offset is None or offset[0] == 0):
                keys[name] = (module, None if offset is None else (offset[1], offset[2]), change is not None)
        return keys

    def converted_lora(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A LoRA file as the stock loader looks at it: several trainers' own names made usual ones."""
        return dict(lora_convert.convert_lora(tensors))

    def _unpatched(self, key: str, weight: Any) -> Tensor:
        """A weight before the host merged patches into it."""
        backup = self.patcher.backup.get(key)
        return cast(Tensor, weight if backup is None else backup.weight)

    def encoder_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Weights of the text encoders and the autoencoder, and the guidance that goes with captions."""
        if self.guidance:
            yield "guidance", torch.tensor(self.guidance)
        for name, part in (("clip", self.clip), ("vae", self.vae), ("clip_vision", self.clip_vision)):
            if part is not None:
                yield from ((f"{name}.{k}", v) for k, v in part.patcher.model.state_dict().items())

    # --- computing ------------------------------------------------------------------------------

    @contextmanager
    def opened(self, training: bool = False) -> Iterator[None]:
        """The model is on its device inside, through the host's memory management, and takes adapters.

        With `training` gradients can flow through it: the host keeps from in-place shortcuts, attention is the one
        that autograd knows, and weights that are cast or fetched for each use are so again in the backward pass and
        not kept.
        """
        with torch.inference_mode():  # as the host loads it
            shape = [1, self.latent_channels, *([1] if self.frames else []), 128, 128]
            reserve = self.patcher.model.memory_required(shape) * (3 if training else 1)
            model_management.load_models_gpu([self.patcher], memory_required=reserve)
        with ExitStack() as stack:
            self.patcher.pre_run()
            stack.callback(self.patcher.cleanup)
            stack.callback(setattr, self, "_options", self._options)
            self._options = self._transformer_options()
            stack.enter_context(as_normal_tensors(self.patcher.model))
            if training:
                forget_fetched(self.module)
                self._options["optimized_attention_override"] = differentiable_attention
                stack.enter_context(in_training())
                stack.enter_context(sound_backends())
                stack.enter_context(fetched_on_use())
                stack.enter_context(differentiable_kernels())
                stack.enter_context(recast_in_backward(self.module, self.dtype, self.device))
            yield

    def on_paper(self) -> AbstractContextManager[None]:
        """Inside, weights are shapes alone: see `trainable.weights_on_paper`."""
        return weights_on_paper()

    def reclaimable(self) -> int:
        """Bytes on its device of weights that were fetched for use, of any model, where the host does so."""
        fetching = sys.modules.get("comfy_aimdo.model_vbar")
        if self.device.type != "cuda" or fetching is None:
            return 0
        return int(fetching.vbars_analyze(self.device.index))

    @property
    def offloads(self) -> bool:
        """Whether the host keeps in the computer's memory what of the weights its device has no room for."""
        states = model_management.VRAMState
        parts = (states.NO_VRAM, states.LOW_VRAM, states.NORMAL_VRAM)
        return self.device.type == "cuda" and model_management.vram_state in parts

    def _transformer_options(self) -> dict[str, Any]:
        """What the host's sampler hands to the network: the user's patches, and the wrappers on the MODEL."""
        options = model_patcher.create_model_options_clone(self.patcher.model_options)
        samplers.cast_to_load_options(options, device=self.device, dtype=self.dtype)
        own: dict[str, Any] = options["transformer_options"]
        for kind in ("wrappers", "callbacks"):
            added = getattr(self.patcher, kind)
            patcher_extension.merge_nested_dicts(own.setdefault(kind, {}), added, copy_dict1=False)
        return own

    def denoised(self, x: Tensor, sigma: Tensor, rows: Sequence[Row]) -> Tensor:
        """The estimate of x0 at `x: [B, ...]`, `sigma: [B]`; inside `opened`.

        Frames that a row is given are clean for the network whatever stands there in `x`, and are the estimate there.
        Every sample goes through the network once: samples whose conditioning can share a batch do, as in the
        host's sampler, the others go in turn.
        """
        if any(given.MASK in row for row in rows):
            frames = given.Given(self.patcher.model, x, rows)
            return frames.kept(self._denoised(frames.held(x, sigma), sigma, rows))
        return self._denoised(x, sigma, rows)

    def loss_weight(self, sigma: Tensor) -> Tensor | None:
        """[B]: the square of an error of the network's own output, for one of epsilon at `sigma: [B]`; None: 1.

        Cosmos and EDM models are treated as epsilon models, but their networks predict neither that nor v. The error of
        an estimate of x0 is ``sigma`` times that of epsilon, and ``c_out`` times that of the network's output, where
        ``c_out`` is what the host multiplies the output with (Karras et al., 2206.00364, table 1). For Cosmos's
        rectified flow that is ``sigma / (1 + sigma)``, and the weight ``(1 + sigma)^2``: the loss of its velocity.
        """
        sampling = self.patcher.get_model_object("model_sampling")
        own = tuple(getattr(model_sampling, name) for name in OWN_OUTPUT if hasattr(model_sampling, name))
        if not isinstance(sampling, own):
            return None
        level = sigma.float()
        c_out = sampling.calculate_denoised(level, torch.ones_like(level), torch.zeros_like(level))
        return (level / c_out).square()

    def _denoised(self, x: Tensor, sigma: Tensor, rows: Sequence[Row]) -> Tensor:
        conds = [self._model_conds(x[i : i + 1], row) for i, row in enumerate(rows)]
        groups = concatable(conds)
        if len(groups) == 1:
            return self._apply(x, sigma, conds)
        own, levels = x.split(1), sigma.split(1)  # by row: an index on the device would be waited for
        out: dict[int, Tensor] = {}
        for group in groups:
            part = torch.cat([own[i] for i in group]), torch.cat([levels[i] for i in group])
            out.update(zip(group, self._apply(*part, [conds[i] for i in group]).split(1), strict=True))
        return torch.cat([out[i] for i in range(len(own))])

    def _model_conds(self, x: Tensor, row: Row) -> dict[str, Any]:
        """What the family makes of one sample's conditioning, told what the host's sampler tells it."""
        entry = as_given({name: value for name, value in row.items() if name != given.FRAMES})
        entry["model_conds"] = {}
        entry.setdefault(
            "pooled_output", None
        )  # as every caption of the host has it; 0.3.64's Chroma asks for it
        if given.MASK in row:
            entry[given.MASK] = row[given.MASK].to(x).expand_as(x)
        (entry,) = samplers.encode_model_conds(
            self.patcher.model.extra_conds,
            [entry],
            x,
            x.device,
            "positive",
            latent_image=torch.zeros_like(x),  # as of an empty latent
            latent_shapes=[x.shape],
        )
        return {name: c.process_cond(batch_size=1, area=None) for name, c in entry["model_conds"].items()}

    def _apply(self, x: Tensor, sigma: Tensor, conds: Sequence[Mapping[str, Any]]) -> Tensor:
        c = samplers.cond_cat(conds)
        c["transformer_options"] = {**self._options, "cond_or_uncond": [0], "uuids": [None], "sigmas": sigma}
        apply = self.patcher.model.apply_model
        wrapper = self.patcher.model_options.get("model_function_wrapper")
        if wrapper is None:
            return cast(Tensor, apply(x, sigma, **c))
        asked = {"input": x, "timestep": sigma, "c": c, "cond_or_uncond": [0]}
        return cast(Tensor, wrapper(apply, asked))

    # --- latents, pictures, texts ---------------------------------------------------------------

    def latent_in(self, latent: Tensor) -> Tensor:
        """A LATENT's samples as the network sees them."""
        return cast(Tensor, self.patcher.model.process_latent_in(latent))

    def given_frames(self, samples: Tensor, mask: Tensor) -> list[dict[str, Tensor]] | None:
        """Controls of the samples [N, C, F, h, w] whose frames a noise mask keeps, see `given.given_frames`."""
        return given.given_frames(self.patcher.model, samples, mask)

    whole_frames = pieces.WHOLE
    """Frames of the longest clip that is encoded at once."""

    def encode_image(self, pixels: pieces.Clip) -> Tensor:
        """Latent [1, C, ...] of one picture [1, H, W, 3] or clip [F, H, W, 3], as the network sees it.

        Raises:
            ValueError: no VAE is wired.
        """
        if self.vae is None:
            raise ValueError("vae must be wired to Model from ComfyUI, to turn pictures into latents")
        latent = self._coded(pixels)
        if self.frames and latent.ndim == 4:
            latent = latent[:, :, None]
        return self.latent_in(latent).to(pixels if isinstance(pixels, Tensor) else torch.empty(0))

    def _coded(self, pixels: pieces.Clip) -> Tensor:
        vae = self.vae
        if pixels.shape[0] <= pieces.WHOLE or not isinstance(vae.first_stage_model, WanVAE):
            return pieces.encoded(pixels, vae.encode)
        clip = pieces.Read(pixels, vae)
        model_management.load_models_gpu(
            [vae.patcher], memory_required=vae.memory_used_encode(clip.shape, vae.vae_dtype)
        )
        dtype = vae.vae_output_dtype() if hasattr(vae, "vae_output_dtype") else torch.float32
        return cast(Tensor, vae.first_stage_model.encode(clip).to(vae.output_device, dtype))

    def encode_controls(
        self, given_controls: Sequence[controls.Control], target: pieces.Clip
    ) -> dict[str, Tensor]:
        """Conditioning of a sample's controls (role, [1, H, W, 3]), as ComfyUI's own nodes make it: see `controls`.

        Args:
            target: the sample's frames [F, H, W, 3].

        Raises:
            ValueError: no VAE is wired, or the family makes nothing of one of them.
        """
        if self.vae is None:
            raise ValueError("vae must be wired to Model from ComfyUI, to turn pictures into latents")
        by_role = dict(reversed(given_controls))  # of each role the first, references excepted
        named = controls.references(given_controls, self._coded)
        if named:
            self._require("reference", lambda: self._differs(named, {}, target))
        if "inpaint" in by_role:
            anew = controls.painted_anew(by_role["inpaint"], target, self._coded)
            self._require("inpaint", lambda: self._differs(anew, {}, target))
            named |= anew
        start, end = by_role.get("start frame"), by_role.get("end frame")
        if start is not None or end is not None:
            named |= self._frames(start, end, target)
        if self.clip_vision is not None:
            seen = controls.frames_seen(start, end, self.clip_vision)
            if seen and not self._known("clip_vision", lambda: self._sees(seen, target)):
                raise ValueError(
                    f"clip_vision must not be connected for {self.name}, which makes nothing of it; take its wire away"
                )
            named |= seen
        return self._row(named)

    def _frames(self, start: Tensor | None, end: Tensor | None, target: pieces.Clip) -> dict[str, Any]:
        """What given frames become, by the way that the family takes them."""
        model = self.patcher.model

        def beside() -> dict[str, Any]:
            return controls.frames_beside(model, start, end, target, self._coded)

        def seen() -> bool:
            made = beside()
            other = made | {"concat_latent_image": made["concat_latent_image"] + 1}
            return self._differs(made, other, target)

        laid_beside = self._known("frames beside", seen)
        if end is not None:
            self._require("end frame", lambda: laid_beside and isinstance(model, WAN21))
        if laid_beside:
            return beside()
        self._require("start frame", lambda: given.keeps_frames(model))
        count = target.shape[0]
        frames = self.vae.downscale_ratio[0](count) if count > 1 else 1
        return {} if start is None or frames == 1 else controls.frames_held(start, frames, self.encode_image)

    def _sees(self, seen: Mapping[str, Any], target: pieces.Clip) -> bool:
        told = getattr(self.module, "img_emb", self) is not None  # Wan's that are not told have none
        return told and self._differs(seen, {}, target)

    def _known(self, what: str, ask: Callable[[], bool]) -> bool:
        """What the family makes of a kind of control; asked once, as it takes a while."""
        if what not in self._uses:
            self._uses[what] = ask()
        return self._uses[what]

    def _require(self, role: str, makes_use: Callable[[], bool]) -> None:
        if not self._known(role, makes_use):
            raise ValueError(
                f"control folders must suit the model, but {self.name} makes nothing of: {role}; leave them out or "
                "choose an edit, inpaint or image-to-video model"
            )

    def _row(self, named: Mapping[str, Any]) -> dict[str, Tensor]:
        (row,) = conditioning_rows([[torch.zeros(1, 1, 1), dict(named)]])
        return {name: value for name, value in row.items() if name != "cross_attn"}

    def _differs(self, one: Mapping[str, Any], other: Mapping[str, Any], target: pieces.Clip) -> bool:
        """Whether the family's conditioning is another one with `one` beside a caption than with `other`."""
        mask = one.get("concat_mask")
        frames = 1 if mask is None or mask.ndim < 5 else mask.shape[2]
        with_it, without = self._made(one, target, frames), self._made(other, target, frames)
        return with_it.keys() != without.keys() or any(
            isinstance(a, Tensor) and (a.shape != without[k].shape or not torch.equal(a, without[k]))
            for k, a in with_it.items()
        )

    def _made(self, named: Mapping[str, Any], target: pieces.Clip, frames: int = 1) -> dict[str, Any]:
        """What the family makes of a caption with `named` beside it, for a sample of `frames` latent frames.

        Args:
            target: [F, H, W, 3], of which the size counts alone.
        """
        height, width = (side // self.scale_factor for side in target.shape[1:3])
        axis = [frames] if self.frames else []
        x = torch.zeros(1, self.latent_channels, *axis, height, width, device=self.device)
        text: dict[str, Tensor] = (
            {"cross_attn": torch.zeros(1, 1, 1)} if self.clip is None else self.encode_caption("")
        )
        row = {name: value.to(self.device) for name, value in {**text, **self._row(named)}.items()}
        return {k: v.cond for k, v in self._model_conds(x, row).items()}

    def told_rate(self, fps: float) -> dict[str, Tensor]:
        """What says that a clip has so many frames per second, as LTXVConditioning does; nothing: no family is told."""
        frame = torch.zeros(1, self.scale_factor * self.patch_size, self.scale_factor * self.patch_size, 3)

        def asks() -> bool:
            told = (self._made({"frame_rate": rate}, frame) for rate in (fps, fps + 1))
            first, second = ({k: v for k, v in made.items() if isinstance(v, float)} for made in told)
            return first != second

        return {"frame_rate": torch.tensor([fps])} if self._known("frame rate", asks) else {}

    def decode_latent(self, latent: Tensor) -> Tensor:
        """Picture [1, H, W, 3] of one latent [1, C, ...]; of several frames, the first.

        Raises:
            ValueError: no VAE is wired.
        """
        if self.vae is None:
            raise ValueError("vae must be wired to Model from ComfyUI, to turn latents into pictures")
        pixels = self.vae.decode(self.patcher.model.process_latent_out(latent))
        return cast(Tensor, pixels.reshape(-1, *pixels.shape[-3:])[:1])

    def preview_latent(self, latent: Tensor) -> Tensor:
        """Small picture [1, h, w, 3] of one latent [1, C, ...], as the host's samplers preview it by default.

        Raises:
            RuntimeError: the host knows no colours for latents of this family.
        """
        family = self.patcher.model.latent_format
        if family.latent_rgb_factors is None:
            raise RuntimeError(f"{self.name} has no preview of its latents in this version of ComfyUI")
        reshape = getattr(family, "latent_rgb_factors_reshape", None)
        latent = latent if reshape is None else reshape(latent)
        latent = latent[:, :, 0] if latent.ndim == 5 else latent  # of several frames, the first
        factors = torch.tensor(family.latent_rgb_factors).to(latent)  # [C, 3]
        bias = getattr(family, "latent_rgb_factors_bias", None)
        offset = 0.0 if bias is None else torch.tensor(bias).to(latent)
        colours = latent.movedim(1, -1) @ factors + offset  # -1 to 1
        return (colours / 2 + 0.5).clamp(0, 1)

    def encode_caption(self, caption: str, weights: bool = True) -> dict[str, Tensor]:
        """Conditioning of one caption; without `weights`, (word:1.2) in it is text as any other.

        Raises:
            ValueError: no CLIP is wired.
        """
        if self.clip is None:
            raise ValueError("clip must be wired to Model from ComfyUI, to turn captions into conditioning")
        if not weights:  # every tokenizer of the host takes an escaped bracket as a bracket
            caption = re.sub(r"(?<!\\)([()])", r"\\\1", caption)
        (row,) = conditioning_rows(self.clip.encode_from_tokens_scheduled(self.clip.tokenize(caption)))
        return row | ({"guidance": torch.tensor([self.guidance])} if self.guidance else {})

    @property
    def reads_pictures(self) -> bool:
        """Whether its text encoder looks at reference pictures while it reads a caption."""
        return self.name in READERS and self.clip is not None

    def encode_caption_beside(self, caption: str, pictures: Sequence[Tensor]) -> dict[str, Tensor]:
        """Conditioning of a caption that is read beside pictures [1, H, W, 3], as ComfyUI's node for that makes it.

        Raises:
            ValueError: more pictures than the node takes.
        """
        module, name, most = READERS[self.name]
        if len(pictures) > most:
            raise ValueError(
                f"references must be at most {most} a sample for {self.name}, got {len(pictures)}; leave some out"
            )
        node = getattr(importlib.import_module(module), name)
        shown = {f"image{i}": picture for i, picture in enumerate(pictures, 1)}
        (row,) = conditioning_rows(node.execute(self.clip, caption, **shown).args[0])
        return row


# --- LoRA --------------------------------------------------------------------------------------------


def with_lora(model: Any, tensors: Mapping[str, Tensor], strength: float) -> Any:
    """A MODEL with a LoRA on it, by the host's own patching; the one that comes in stays as it is.

    Raises:
        ValueError: not one of its keys fits the model.
    """
    keys = lora.model_lora_keys_unet(model.model, {})
    modules = {name.partition(".lora_")[0].partition(".hada_")[0].partition(".lokr_")[0] for name in tensors}
    if not modules & keys.keys():
        raise ValueError(
            f"the LoRA must fit the model, but none of its {len(modules)} modules does; choose one made for it"
        )
    patched, _ = sd.load_lora_for_models(model, None, dict(tensors), strength, 0)
    return patched


def check_kind(model: Any) -> None:
    """Refuse what is no model of pictures or video, or has noise levels that no schedule describes.

    Raises:
        ValueError: it is such a model.
    """
    name = type(model.model).__name__
    if model.model.model_config.unet_config.get("audio_model"):
        raise ValueError(f"model must make pictures or video, got {name}, which makes sound; choose another")
    if model.model.model_config.unet_config.get("use_temporal_attention"):
        raise ValueError(
            f"model must take each picture or clip by itself, got {name}, which takes a batch for the frames of one "
            "clip; choose another"
        )
    cascade = getattr(model_sampling, "StableCascadeSampling", None)
    if cascade is not None and isinstance(model.get_model_object("model_sampling"), cascade):
        raise ValueError(
            f"model must have noise levels of a common kind, got {name} (Stable Cascade); choose another"
        )


def prediction_of(sampling: Any) -> Prediction:
    """What a model predicts, by its kind of sampling; other parametrisations of x0 count as epsilon.

    Raises:
        ValueError: it does not remove noise, or noise of another scale.
    """
    kinds = model_sampling
    strange = tuple(
        getattr(kinds, name) for name in ("IMG_TO_IMG", "IMG_TO_IMG_FLOW") if hasattr(kinds, name)
    )
    if isinstance(sampling, strange):
        raise ValueError(
            "model must remove noise step by step, got one that makes its picture in one; choose another"
        )
    if getattr(sampling, "noise_scale", 1.0) != 1.0:
        raise ValueError(
            f"model must use noise of scale 1, got {sampling.noise_scale}, as HiDream O1 has; choose another"
        )
    if isinstance(sampling, kinds.CONST):
        return "flow"
    v = tuple(getattr(kinds, name) for name in ("V_PREDICTION", "V_PREDICTION_DDPM") if hasattr(kinds, name))
    return "v" if isinstance(sampling, v) and not isinstance(sampling, kinds.EDM) else "epsilon"
