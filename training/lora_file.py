"""LoRA files: key names that loaders understand, the scale inside the tensors, written in one piece."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from .lora import AdapterState

MAGNITUDE = "lora_magnitude_vector"
"""peft's name for the row norms of DoRA."""
SCALED_FACTORS = (".lora_B.weight", ".hada_w1_a", ".lokr_w1", ".lokr_w1_a")
"""The factor of an adapter that carries alpha / rank in a file (LoKr: whichever of its two is there)."""


def folded(adapter: AdapterState) -> dict[str, Tensor]:
    """Return the adapter's tensors with alpha / rank multiplied in, so that they act with scale 1.

    Loaders disagree on where alpha is written: diffusers' transformer pipelines refuse a file with
    ``.alpha`` keys, ComfyUI reads nothing else, and all take a file without alpha at scale 1. So files
    carry no alpha. The product is in float32 and rounds once; at a power of two it is exact.
    """
    scale = adapter.config.alpha / adapter.config.rank
    return {k: v.float() * scale if k.endswith(SCALED_FACTORS) else v for k, v in adapter.tensors.items()}


def split_adapter_name(name: str) -> tuple[str, str]:
    """Split ``<module>.lora_A.weight`` and the like into module and end."""
    module, end = re.split(r"\.(?=lora_|hada_|lokr_)", name, maxsplit=1)
    return module, end


def peft_names(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Name adapter tensors as diffusers' transformer pipelines do, ``transformer.<module>.lora_A.weight``.

    The magnitudes of DoRA are written twice: diffusers reads ``lora_magnitude_vector`` and drops
    ``dora_scale`` with a warning, ComfyUI reads ``dora_scale`` [out, 1] and reports the other as not loaded.
    """
    out = {f"{prefix}.{name}": value for name, value in tensors.items()}
    for name, value in tensors.items():
        if name.endswith(MAGNITUDE):
            out[f"{prefix}.{name.removesuffix(MAGNITUDE)}dora_scale"] = value.reshape(value.numel(), -1)
    return out


def kohya_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name adapter tensors ``lora_unet_<module with underscores>.lora_down.weight`` and so on."""
    ends = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight", MAGNITUDE: "dora_scale"}
    out = {}
    for name, value in tensors.items():
        module, end = split_adapter_name(name)
        key = f"lora_unet_{module.replace('.', '_')}.{ends.get(end, end)}"
        out[key] = value.reshape(value.numel(), -1) if end == MAGNITUDE else value
    return out


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file so that `path` is either complete or as it was before.

    Raises:
        OSError: the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary, dict(metadata))
        with open(temporary, "rb+") as file:  # on the disk before it has the name
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
