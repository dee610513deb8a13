"""Which of a network's layers a name in a LoRA file means.

Trainers name layers differently: by the network's own modules, by those of another form of the same network (fused or
split attention projections, kohya's UNet blocks), with prefixes of their own. A `KeyMap` answers all of them. ComfyUI
has one for each of its models, which decides there; this one adds what every network can answer by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from .adapter import is_linear

PREFIXES = (
    "", "transformer.", "unet.", "diffusion_model.", "model.diffusion_model.", "base_model.model.",
    "transformer.base_model.model.", "unet.base_model.model.",
)  # fmt: skip
"""Before a layer's name with dots."""
FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")
"""Before a layer's name with underscores."""


@dataclass(frozen=True)
class Place:
    """Rows of one of our layers' outputs, and the rows of the file's layer that belong there."""

    module: str
    rows: tuple[int, int] | None = None
    """First row and number of rows; None: all of the layer."""
    of: tuple[int, int] | None = None
    """The same in the file's layer."""
    swapped: bool = False
    """The file's layer has the two halves of its rows exchanged."""

    @property
    def whole(self) -> bool:
        """Whether the file's layer is ours, row by row."""
        return self.rows is None and self.of is None and not self.swapped


KeyMap = Mapping[str, tuple[Place, ...]]
"""A layer's name in a file -> where it goes; to several places where the file has layers in one that we have apart."""

# Fused layers of the original Flux and SD3 networks, and the layers of diffusers' that they hold in this order.
_QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
_ADDED = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
_BLOCKS: Mapping[tuple[str, str], Mapping[str, tuple[str, ...]]] = {
    ("double_blocks", "transformer_blocks"): {
        "img_attn.qkv": _QKV,
        "txt_attn.qkv": _ADDED,
        "img_attn.proj": ("attn.to_out.0",),
        "txt_attn.proj": ("attn.to_add_out",),
        "img_mlp.0": ("ff.net.0.proj",),
        "img_mlp.2": ("ff.net.2",),
        "txt_mlp.0": ("ff_context.net.0.proj",),
        "txt_mlp.2": ("ff_context.net.2",),
        "img_mod.lin": ("norm1.linear",),
        "txt_mod.lin": ("norm1_context.linear",),
    },
    ("single_blocks", "single_transformer_blocks"): {
        "linear1": (*_QKV, "proj_mlp"),
        "linear2": ("proj_out",),
        "modulation.lin": ("norm.linear",),
    },
    ("joint_blocks", "transformer_blocks"): {
        "x_block.attn.qkv": _QKV,
        "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
        "context_block.attn.qkv": _ADDED,
        "x_block.attn.proj": ("attn.to_out.0",),
        "x_block.attn2.proj": ("attn2.to_out.0",),
        "context_block.attn.proj": ("attn.to_add_out",),
        "x_block.mlp.fc1": ("ff.net.0.proj",),
        "x_block.mlp.fc2": ("ff.net.2",),
        "context_block.mlp.fc1": ("ff_context.net.0.proj",),
        "context_block.mlp.fc2": ("ff_context.net.2",),
        "x_block.adaLN_modulation.1": ("norm1.linear",),
    },
}
# Parts of a residual block of a UNet, in the names of the original network.
_RESNET = {
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def module_keys(module: nn.Module, known: KeyMap | None = None) -> dict[str, tuple[Place, ...]]:
    """All names by which a file may mean a layer of `module`; those of `known`, a host's own, come first."""
    layers = {name: m for name, m in module.named_modules() if isinstance(m, nn.Conv2d) or is_linear(m)}
    named = _fused(layers)
    named |= {old: (Place(own),) for old, own in _unet_names(layers)}
    named |= {name: (Place(name),) for name in layers}
    keys: dict[str, tuple[Place, ...]] = {}
    for name, places in named.items():
        flat = name.replace(".", "_")
        for key in (*(f"{p}{name}" for p in PREFIXES), *(f"{p}{flat}" for p in FLAT_PREFIXES)):
            keys.setdefault(key, places)
        if ".to_" in name:  # attention processors of older diffusers: their to_out is to_out.0
            key = name.replace(".to_", ".processor.to_").removesuffix(".0")
            keys.setdefault(key, places)
            keys.setdefault(f"unet.{key}", places)
    return keys | {key: places for key, places in (known or {}).items() if places[0].module in layers}


def _fused(layers: Mapping[str, nn.Module]) -> dict[str, tuple[Place, ...]]:
    """The original networks' names of Flux and SD3 layers, for diffusers' networks, which have them apart."""
    found = {}
    for (old, own), parts in _BLOCKS.items():
        for index in {name.split(".")[1] for name in layers if name.startswith(f"{own}.")}:
            for end, members in parts.items():
                names = [f"{own}.{index}.{member}" for member in members]
                if all(name in layers for name in names):
                    found[f"{old}.{index}.{end}"] = tuple(_in_turn(names, layers))
    return found


def _in_turn(names: list[str], layers: Mapping[str, nn.Module]) -> Iterator[Place]:
    """Places of layers that lie one after the other in the rows of one."""
    start = 0
    for name in names:
        length = int(layers[name].out_features)  # type: ignore[arg-type]  # a linear layer's
        yield Place(name) if len(names) == 1 else Place(name, of=(start, length))
        start += length


def _unet_names(layers: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Pairs of the original name and diffusers' name of every layer of a UNet, as kohya's SDXL files have them."""
    blocks = _unet_blocks(set(layers))
    for name in layers:
        if name in blocks:
            yield blocks[name], name
            continue
        place = next((b for b in blocks if name.startswith(f"{b}.")), None)
        if place is None:
            continue
        rest = name[len(place) + 1 :]
        if ".resnets." in f".{place}." and rest in _RESNET.values():
            rest = next(old for old, own in _RESNET.items() if own == rest)
        yield f"{blocks[place]}.{rest}", name
    heads = {
        "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
        "label_emb.0.0": "add_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2",
        "input_blocks.0.0": "conv_in", "out.2": "conv_out",
    }  # fmt: skip
    yield from ((old, own) for old, own in heads.items() if blocks and own in set(layers))


def _unet_blocks(layers: set[str]) -> dict[str, str]:
    """diffusers' name of every part of a UNet -> its place among the original's numbered blocks."""

    folders = {name[:i] for name in layers for i in range(len(name)) if name[i] == "."}

    def has(part: str) -> bool:
        return part in folders

    blocks: dict[str, str] = {}
    number, block = 1, 0
    while has(f"down_blocks.{block}"):
        own, layer = f"down_blocks.{block}", 0
        while has(f"{own}.resnets.{layer}"):
            blocks[f"{own}.resnets.{layer}"] = f"input_blocks.{number}.0"
            blocks[f"{own}.attentions.{layer}"] = f"input_blocks.{number}.1"
            number, layer = number + 1, layer + 1
        if has(f"{own}.downsamplers"):
            blocks[f"{own}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1
        block += 1
    if blocks:
        for own, old in (("resnets.0", 0), ("attentions.0", 1), ("resnets.1", 2)):
            blocks[f"mid_block.{own}"] = f"middle_block.{old}"
    number, block = 0, 0
    while has(f"up_blocks.{block}"):
        own, layer = f"up_blocks.{block}", 0
        while has(f"{own}.resnets.{layer}"):
            blocks[f"{own}.resnets.{layer}"] = f"output_blocks.{number}.0"
            blocks[f"{own}.attentions.{layer}"] = f"output_blocks.{number}.1"
            number, layer = number + 1, layer + 1
        last = 2 if has(f"{own}.attentions") else 1
        blocks[f"{own}.upsamplers.0.conv"] = f"output_blocks.{number - 1}.{last}.conv"
        block += 1
    return blocks
