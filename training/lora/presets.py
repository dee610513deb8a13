"""Which layers get an adapter, by the structure of a network instead of by lists for each family.

Trainers agree on the linear layers of the transformer blocks, attention and MLP, and leave alone what modulates,
embeds, refines or adapts: musubi-tuner's ``network_arch`` (docs/network_arch.md, 2026-10), OneTrainer's ``attn-mlp``
presets, sd-scripts. Networks name their blocks in many ways but build them alike: a list of them, numbered.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

from .adapter import Preset, is_linear

ASIDE = re.compile(
    r"(^|_)mod($|_|[A-Z]|ulation)|adaln|modulation|norm|embed|emb($|_)|refiner|adapter|connector|caption|encoder"
    r"|guidance|fusion|nerf|resampler|audio|final|(before|after)_proj|time_",
    re.IGNORECASE,
)
"""What a part of a layer's name says where the layer, or what it lies in, is none of the blocks' attention and MLP.

Of networks with a stream of sound the layers of sound are left out: it is not trained.
"""
MODULATION = re.compile(r"^mod[A-Z]")
"""The same in the names that AuraFlow gives it; here case counts."""


def in_block(name: str) -> bool:
    """Whether a layer lies in a numbered block, and is neither the numbered thing itself nor set aside."""
    parts = name.split(".")
    numbered = [i for i, part in enumerate(parts) if part.isdigit() or re.fullmatch(r"block\d+", part)]
    if not numbered or numbered[0] in (0, len(parts) - 1):
        return False
    return not any(ASIDE.search(part) or MODULATION.match(part) for part in parts)


def linear_layers(module: nn.Module) -> list[str]:
    """Names of the linear layers of a network."""
    return [name for name, m in module.named_modules() if is_linear(m)]


def patterns(names: Iterable[str]) -> tuple[str, ...]:
    """One regular expression for each kind of layer: the names, their numbers left open."""
    kinds = {re.sub(r"(?<=\.)(block)?\d+(?=\.|$)", r"\1#", name): None for name in names}
    return tuple(f"^{re.escape(kind)}$".replace(r"\#", r"\d+") for kind in kinds)


def preset_targets(preset: Preset, module: nn.Module, attention: tuple[str, ...]) -> tuple[str, ...]:
    """Regular expressions for the layers of a preset.

    Args:
        attention: those of the family's attention projections.

    Raises:
        ValueError: `custom`, which has no layers of its own.
    """
    if preset == "custom":
        raise ValueError(
            "targets must name layers where the preset is custom, got none; name some or choose a preset"
        )
    if preset == "attention":
        return attention
    names = linear_layers(module)
    chosen = names if preset == "all" else [name for name in names if in_block(name)]
    return patterns(chosen) or attention  # there are no blocks
