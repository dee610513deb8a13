"""LoRA files: key names that loaders understand, the scale inside the tensors, written in one piece."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor

from .adapter import SCALED_FACTORS, AdapterState

MAGNITUDE = "lora_magnitude_vector"
"""peft's name for the row norms of DoRA."""


def folded(adapter: AdapterState) -> dict[str, Tensor]:
    """The adapter's tensors with alpha / rank multiplied in, so that they act with scale 1.

    Loaders disagree on where alpha is written: diffusers' transformer pipelines refuse a file with
    ``.alpha`` keys, ComfyUI reads nothing else, and all take a file without alpha at scale 1. So files
    carry no alpha. The product is in float32 and rounds once; at a power of two it is exact.
    """
    scale = adapter.config.alpha / adapter.config.rank
    return {k: v.float() * scale if k.endswith(SCALED_FACTORS) else v for k, v in adapter.tensors.items()}


def split_adapter_name(name: str) -> tuple[str, str]:
    """Split ``<module>.lora_A.weight`` and the like into module and end."""
    module, end = re.split(r"\.(?=lora_|hada_|lokr_|dora_)", name, maxsplit=1)
    return module, end


def with_dora_scale(tensors: Mapping[str, Tensor], weight: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """Add ``<module>.dora_scale`` [out, 1, ...], what ComfyUI reads, to folded tensors of a DoRA.

    DoRA (2402.09353) is ``m (W + BA) / ||W + BA||``, norms by row. ComfyUI (0.3.64 to 0.33.0) divides by
    ``||W||`` instead, so its scale is ``m ||W|| / ||W + BA||``: there it gives the trained weights exactly.

    Args:
        tensors: of `folded`; nothing is added where there is no magnitude.
        weight: gives the base weight of a module.
    """
    out = dict(tensors)
    for name, magnitude in tensors.items():
        module, end = split_adapter_name(name)
        if end == MAGNITUDE:
            base = weight(module).detach().float().cpu()
            up, down = tensors[f"{module}.lora_B.weight"], tensors[f"{module}.lora_A.weight"]
            adapted = base + (up.flatten(1) @ down.flatten(1)).reshape(base.shape)
            ratio = base.flatten(1).norm(dim=1) / adapted.flatten(1).norm(dim=1)
            scale = magnitude.flatten() * ratio
            out[f"{module}.dora_scale"] = scale.reshape(-1, *[1] * (base.ndim - 1))  # [out] -> [out, 1, ...]
    return out


def peft_names(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Name adapter tensors as diffusers' transformer pipelines do, ``transformer.<module>.lora_A.weight``.

    A DoRA has its magnitudes twice: diffusers reads ``lora_magnitude_vector`` and drops ``dora_scale`` with a
    warning, ComfyUI reads ``dora_scale`` and reports the other as not loaded.
    """
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def comfy_names(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Name adapter tensors by ComfyUI's own modules, ``<prefix>.<module>.lora_down.weight``: so it reads any family."""
    ends = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}
    out = {}
    for name, value in tensors.items():
        module, end = split_adapter_name(name)
        if end != MAGNITUDE:
            out[f"{prefix}.{module}.{ends.get(end, end)}"] = value
    return out


def kohya_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name adapter tensors ``lora_unet_<module with underscores>.lora_down.weight`` and so on.

    diffusers drops the ``dora_scale`` of such files, and warns: a DoRA of a UNet is for ComfyUI alone.
    """
    ends = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}
    out = {}
    for name, value in tensors.items():
        module, end = split_adapter_name(name)
        if end != MAGNITUDE:
            out[f"lora_unet_{module.replace('.', '_')}.{ends.get(end, end)}"] = value
    return out


NAMES: Mapping[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]] = {
    "comfyui": partial(comfy_names, prefix="diffusion_model"),
    "diffusers": partial(peft_names, prefix="transformer"),
    "kohya": kohya_names,
}
"""The ways in which LoRA files name their tensors, by the word that run folders keep."""
