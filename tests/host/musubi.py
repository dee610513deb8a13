"""Which layers musubi-tuner trains by default, as rules on the host's networks, and where ours are others.

Read in github.com/kohya-ss/musubi-tuner at commit 30c658c (2026-06-24): `networks/network_arch.py` and the
`networks/lora_*.py` of each family. A rule is classes of blocks, here by ComfyUI's names, and a pattern for layers of
them that are left out. FramePack and HiDream O1, which it trains too, are not trained here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

FLUX = ("DoubleStreamBlock", "SingleStreamBlock")
WAN = r"patch_embedding|text_embedding|time_embedding|time_projection|norm|head"


@dataclass(frozen=True)
class Rule:
    """Default layers of one family."""

    blocks: tuple[str, ...]
    """Classes; none: the whole network."""
    without: str = "^$"
    """Searched in names of layers."""
    only: str = ""
    """The same of those that are trained; empty: all."""


RULES = {
    "hunyuan_video": Rule(FLUX, "img_mod|txt_mod|modulation"),
    "hunyuan_video15": Rule(FLUX, r"_in|single_blocks\.\d+\.modulation"),  # the real one has no single blocks
    "flux_kontext": Rule(FLUX, r"img_mod\.lin|txt_mod\.lin|modulation\.lin|norm"),
    "flux2": Rule(FLUX, r"img_mod\.lin|txt_mod\.lin|modulation\.lin|norm"),
    "flux2_klein": Rule(FLUX, r"img_mod\.lin|txt_mod\.lin|modulation\.lin|norm"),
    "wan21_t2v": Rule(("WanAttentionBlock",), WAN),
    "wan21_i2v": Rule(("WanAttentionBlock",), WAN),
    "qwen_image": Rule(("QwenImageTransformerBlock",), "_mod_"),
    "z_image": Rule(("JointTransformerBlock",), "_modulation|_refiner"),
    "ideogram4": Rule(("Ideogram4TransformerBlock",), "adaln_modulation"),
    "kandinsky5_video": Rule(
        ("TransformerEncoderBlock", "TransformerDecoderBlock"),
        only=r"(self|cross)_attention\.(to_query|to_key|to_value|out_layer)|feed_forward\.(in|out)_layer",
    ),
    "krea2": Rule(()),
}
"""By the names of `tiny_families`."""

TRAINED_THERE_ALONE = {
    "hunyuan_video15": {"double_blocks.N.img_mod.lin", "double_blocks.N.txt_mod.lin"},
    "qwen_image": {"transformer_blocks.N.img_mod.N", "transformer_blocks.N.txt_mod.N"},
    "krea2": "every other linear layer",
}
"""Differences, as docs/families.md lists them. There are none the other way."""


def layers(rule: Rule, network: Any, linear: list[str]) -> set[str]:
    """Names of the layers that a rule means, among the linear ones of a network."""
    blocks = [name for name, module in network.named_modules() if type(module).__name__ in rule.blocks]
    inside = (
        [name for name in linear if any(name.startswith(f"{block}.") for block in blocks)]
        if rule.blocks
        else linear
    )
    return {name for name in inside if not re.search(rule.without, name) and re.search(rule.only or "", name)}


def kinds(names: set[str]) -> set[str]:
    """Names without the numbers of their blocks."""
    return {re.sub(r"\.\d+", ".N", name) for name in names}
