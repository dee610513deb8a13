"""Conditioning whose rows differ in size: padded to one size, with each row's own shape beside it.

Captions of a text encoder may differ in length, and a network without an attention mask must not see padding. So
``<name>.shape`` [N, 1 + axes] (integers) says how much of each row of ``<name>`` [N, ...] is real: 1 and the row's
own sizes, or -1 for a row that has no such tensor at all. Where all rows fill their tensor, there is no such companion.

Each tensor has a role, by its name. `text` is what a text encoder makes of a caption; caption dropout exchanges it for
the empty caption's. `control` is all the rest: reference pictures, given frames, masks, the output of a vision encoder,
settings such as guidance or a frame rate. A control belongs to its sample and goes with it everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..samplers import sent

Cond = Mapping[str, Tensor]
"""Conditioning of a batch: named tensors, each with the batch as its first axis."""
SHAPE = ".shape"
"""End of a companion's name."""
ABSENT = -1
READ = (SHAPE, "/text")
"""Ends of names of tensors that no network sees."""

Role = Literal["text", "control"]
TEXT = (
    "cross_attn", "pooled", "context", "attention_mask", "conditioning_", "t5xxl_", "text_", "unprocessed_",
    "audio_codes", "minimax_token_tags",
)  # fmt: skip
"""How the names of what text encoders make begin: ComfyUI's, and those of our own backend."""
NOT_TEXT = ("context_latents",)
"""Controls whose names begin like that."""


def role(name: str) -> Role:
    """The role of a tensor in a `Cond`; a name may be a path, as ``reference_latents/0``, and may be a companion's."""
    return "text" if name.startswith(TEXT) and not name.startswith(NOT_TEXT) else "control"


def text_of(cond: Cond) -> Cond:
    """What of `cond` a text encoder made."""
    return {name: value for name, value in cond.items() if role(name) == "text"}


def controls_of(cond: Cond) -> Cond:
    """What of `cond` belongs to its samples whatever their captions are."""
    return {name: value for name, value in cond.items() if role(name) == "control"}


def alike(conds: Sequence[Cond]) -> list[Cond]:
    """Conditionings brought to the same names and sizes, so that their rows can be exchanged and joined.

    Raises:
        ValueError: a tensor has a different number of axes here and there.
    """
    names = {
        name: None for cond in conds for name in cond if not name.endswith(SHAPE)
    }  # a set that keeps order
    out: list[dict[str, Tensor]] = [{} for _ in conds]
    for name in names:
        sizes = [tuple(cond[name].shape[1:]) for cond in conds if name in cond]
        if len({len(size) for size in sizes}) != 1:
            raise ValueError(f"conditioning {name} must have the same axes in every sample, got {sizes}")
        size = tuple(max(side) for side in zip(*sizes, strict=True))
        same = all(cond[name].shape[1:] == size for cond in conds if name in cond)
        whole = same and all(name in cond and name + SHAPE not in cond for cond in conds)
        example = next(cond[name] for cond in conds if name in cond)
        for cond, own in zip(conds, out, strict=True):
            if whole:
                own[name] = cond[name]
            else:
                own[name], own[name + SHAPE] = _padded(cond, name, size, example)
    return list(out)


def joined(conds: Sequence[Cond]) -> Cond:
    """The rows of several conditionings together."""
    same = alike(conds)
    return {name: torch.cat([cond[name] for cond in same]) for name in same[0]}


def separated(cond: Cond) -> list[dict[str, Tensor]]:
    """The conditioning of N samples one by one: each row's tensors [1, ...] at their own sizes.

    What `stays` on the CPU comes there if it was not, once for all rows.
    """
    n = len(next(iter(cond.values())))
    cond = {name: value.cpu() if stays(name, value) else value for name, value in cond.items()}
    shapes = {name: cond[name + SHAPE].tolist() for name in cond if name + SHAPE in cond}
    out: list[dict[str, Tensor]] = []
    for i in range(n):
        row = {}
        for name, value in cond.items():
            if name.endswith(SHAPE) or (name in shapes and shapes[name][i][0] == ABSENT):
                continue
            own = value[i : i + 1]
            for axis, side in enumerate(shapes[name][i][1:] if name in shapes else (), start=1):
                own = own.narrow(axis, 0, side)
            row[name] = own
        out.append(row)
    return out


def _padded(cond: Cond, name: str, size: tuple[int, ...], example: Tensor) -> tuple[Tensor, Tensor]:
    """The tensor `name` of `cond` at `size`, and its companion [N, 1 + axes]: whether it is there, and its shape."""
    n = len(next(iter(cond.values())))
    if name not in cond:
        absent = torch.full((n, 1 + len(size)), ABSENT, device=example.device)
        return example.new_zeros(n, *size), absent
    value = cond[name]
    own = torch.tensor([1, *value.shape[1:]], device=value.device).expand(n, -1)
    missing = [side for have, want in zip(value.shape[1:], size, strict=True) for side in (want - have, 0)]
    return F.pad(value, missing[::-1]), cond.get(name + SHAPE, own)


def select(cond: Cond, rows: Tensor) -> Cond:
    """The conditioning of the batch rows `rows: LongTensor [A]`; on the CPU, so that nobody waits for them."""
    there = {device: sent(rows, device) for device in {value.device for value in cond.values()}}
    return {name: value.index_select(0, there[value.device]) for name, value in cond.items()}


def stays(name: str, value: Tensor) -> bool:
    """Whether a tensor of a `Cond` is on the CPU wherever the model computes: what stands for numbers and texts.

    Whoever asks the model reads them; on a device that would be a wait at every call.
    """
    return value.ndim == 1 or name.endswith(READ)


def placed(cond: Cond, device: torch.device) -> Cond:
    """The conditioning on `device`, but for what `stays`."""
    return {name: value.cpu() if stays(name, value) else sent(value, device) for name, value in cond.items()}
