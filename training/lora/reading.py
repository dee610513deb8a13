"""LoRA files read back: an adapter to go on training from, or to sample with."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..checks import from_plain
from ..files import read_file
from .adapter import AdapterState, LoRAConfig
from .file import MAGNITUDE, SCALED_FACTORS, split_adapter_name

PREFIXES = ("transformer.", "unet.", "diffusion_model.")
KOHYA = "lora_unet_"
ENDS = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}


def read_lora(path: Path, module: nn.Module) -> AdapterState:
    """The adapter in the LoRA file at `path`, for the network `module` (`ModelSource.denoiser().module`).

    Our own files come back as the adapter that wrote them (rank, alpha, kind and targets are in the header). Other
    files: LoRA of one rank, in diffusers' or kohya's names; what they hold acts as it does in other loaders.

    Raises:
        ValueError: it cannot be read, is no LoRA, or does not fit the module.
    """
    tensors, header = read_file(path)
    flat = {name.replace(".", "_"): name for name, _ in module.named_modules()}
    named = {_peft_name(name, flat, path): value for name, value in tensors.items()}
    named = {name: value for name, value in named.items() if not name.endswith(".dora_scale")}
    if "config" in header and header.get("format", "").startswith("rollout-trainer"):
        config = from_plain(LoRAConfig, json.loads(header["config"])["lora"])
        return AdapterState(config, _scaled(named, config.rank / config.alpha))
    return _foreign(named, path)


def _peft_name(name: str, flat: Mapping[str, str], path: Path) -> str:
    """``<module>.lora_A.weight`` of a key in any of the known forms."""
    module, end = _split(name, path)
    if module.startswith(KOHYA):
        module = flat.get(module.removeprefix(KOHYA), "")
    for prefix in PREFIXES:
        module = module.removeprefix(prefix)
    if module not in flat.values() or not module:
        raise ValueError(f"LoRA file {path} must fit the model, but has {name}; it was made for another one")
    return f"{module}.{ENDS.get(end, end)}"


def _split(name: str, path: Path) -> tuple[str, str]:
    match = re.match(r"(.+?)\.((?:lora_|hada_|lokr_|dora_).*|alpha)$", name)
    if match is None:
        raise ValueError(f"LoRA file {path} must hold adapter weights, got {name}; it is no LoRA")
    return match[1], match[2]


def _scaled(tensors: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Files are at scale 1 (`file.folded`); bring the factor that carries the scale to the adapter's own."""
    return {k: v * scale if k.endswith(SCALED_FACTORS) else v for k, v in tensors.items()}


def _foreign(tensors: Mapping[str, Tensor], path: Path) -> AdapterState:
    """A LoRA of one rank from elsewhere, its own alphas folded in."""
    weights = {k: v.float() for k, v in tensors.items() if not k.endswith(".alpha")}
    if any(not k.endswith((".lora_A.weight", ".lora_B.weight", MAGNITUDE)) for k in weights):
        raise ValueError(f"LoRA file {path} must be a plain LoRA or one of our own; retrain it here to go on")
    ranks = {len(v) for k, v in weights.items() if k.endswith(".lora_A.weight")}
    if len(ranks) != 1:
        raise ValueError(f"LoRA file {path} must have one rank, got {sorted(ranks)}; it cannot be trained on")
    rank = ranks.pop()
    modules = sorted({split_adapter_name(k)[0] for k in weights})
    for module in modules:
        alpha = tensors.get(f"{module}.alpha")
        if alpha is not None:
            key = f"{module}.lora_B.weight"
            weights[key] = weights[key] * (float(alpha) / rank)
    kind: Any = "dora" if any(k.endswith(MAGNITUDE) for k in weights) else "lora"
    targets = tuple(f"^{re.escape(module)}$" for module in modules)
    return AdapterState(LoRAConfig(kind, rank, float(rank), 0.0, targets), weights)
