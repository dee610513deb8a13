"""CONDITIONING of ComfyUI as rows of named tensors, and back.

What an entry carries may be of any kind: tensors and numbers, but also lists of pictures (edit models), texts,
switches, vectors without a batch axis and the output of a vision encoder. It is laid flat under names that say how to
build it again: ``reference_latents/0`` is the first of a list, ``reference_latents_method/text`` a text as bytes. So a
data set, a cache and a batch hold tensors alone, and rows may differ in size and in what they have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from comfy import samplers
from comfy.clip_vision import Output
from torch import Tensor

REFUSED = ("control", "area", "mask", "gligen", "hooks", "timestep_start", "timestep_end")
"""Conditioning that applies to a part of a picture or of a trajectory; no sample of a data set has such."""
WHOLE = {"start_percent": 0.0, "end_percent": 1.0}
"""Parts of a trajectory that are all of it: of no effect, and left out."""

Row = Mapping[str, Tensor]
"""Conditioning of one sample: tensors [1, ...] by the host's names; one of no other axis is a number."""

KEY, SEEN = "key:", "vision:"
"""Before the name of a member, in a path: of a mapping, of the output of a vision encoder."""
NONE, EMPTY, SWITCH, TEXT, SCALAR, VECTOR, TENSOR = (
    "none", "empty", "switch", "text", "scalar", "vector", "whole",
)  # fmt: skip
"""Ends of a path: what the tensor there stands for. A path without one is a tensor with the batch as its first axis, or
a number."""


def conditioning_rows(conditioning: Sequence[Any]) -> list[dict[str, Tensor]]:
    """The samples in a CONDITIONING: one for each entry, or for each row of an entry that is a batch.

    Raises:
        ValueError: conditioning of a part of a picture or a trajectory, or of a kind that cannot be kept.
    """
    rows: list[dict[str, Tensor]] = []
    for context, options in conditioning:
        named = {"cross_attn": context, **options}
        named = {k: v for k, v in named.items() if v is not None and WHOLE.get(k) != v}
        refused = [name for name in named if name in REFUSED or name in WHOLE]
        if refused:
            raise ValueError(
                f"conditioning must apply to the whole picture and to every step, got {', '.join(refused)}; "
                "remove the nodes that limit it"
            )
        n = 1 if context is None else len(context)
        kept = {path: tensor for name, value in named.items() for path, tensor in laid_flat(name, value, n)}
        rows += [{k: v[i : i + 1] for k, v in kept.items()} for i in range(n)]
    return rows


def laid_flat(path: str, value: Any, n: int) -> Iterator[tuple[str, Tensor]]:
    """A value of `n` samples as tensors [n, ...] under `path` and the paths below it.

    Raises:
        ValueError: it holds something of another kind.
    """
    if isinstance(value, Tensor):
        yield tensor_of(path, value.detach(), n)
    elif isinstance(value, bool):
        yield f"{path}/{SWITCH}", torch.full((n,), value)
    elif isinstance(value, (int, float)):
        yield path, torch.full((n,), value, dtype=torch.long if isinstance(value, int) else torch.float32)
    elif isinstance(value, str):
        data = torch.tensor(list(value.encode()), dtype=torch.uint8)
        yield f"{path}/{TEXT}", data.expand(n, -1).clone()
    elif value is None or (isinstance(value, (list, tuple, dict)) and not value):
        yield f"{path}/{NONE if value is None else EMPTY}", torch.zeros(n, 1)
    else:
        for name, member in members(path, value):
            yield from laid_flat(f"{path}/{name}", member, n)


def tensor_of(path: str, value: Tensor, n: int) -> tuple[str, Tensor]:
    """A tensor with a row for each of `n` samples: its own rows, or the whole of it for every sample."""
    if value.ndim > 1 and len(value) in (1, n):
        return path, value.clone().expand(n, *value.shape[1:])
    kind = {0: SCALAR, 1: VECTOR}.get(value.ndim, TENSOR)
    return f"{path}/{kind}", value.clone().expand(n, *value.shape) if value.ndim else value.repeat(n, 1)


def members(path: str, value: Any) -> list[tuple[str, Any]]:
    """What a list, a mapping or a vision encoder's output consists of, by the names in a path.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(value, (list, tuple)):
        return [(str(i), item) for i, item in enumerate(value)]
    if isinstance(value, Output):
        return [(SEEN + name, item) for name, item in vars(value).items()]
    if isinstance(value, dict) and all(isinstance(name, str) and "/" not in name for name in value):
        return [(KEY + name, item) for name, item in value.items()]
    raise ValueError(
        f"conditioning {path} must be a tensor, number, text, switch, list or output of a vision encoder, got "
        f"{type(value).__name__}; leave out the node that adds it"
    )


Branch = dict[str, Any]
"""A value that is being built: its members by name, or under an end of `BUILT` its tensor."""
BUILT: dict[str, Callable[[Tensor], Any]] = {
    "": lambda t: t.item() if t.ndim == 1 else t,
    NONE: lambda t: None,
    EMPTY: lambda t: [],
    SWITCH: lambda t: bool(t.item()),
    TEXT: lambda t: bytes(t[0].tolist()).decode(),
    SCALAR: lambda t: t[0, 0],
    VECTOR: lambda t: t[0],
    TENSOR: lambda t: t[0],
}


def as_given(row: Row) -> dict[str, Any]:
    """The values that one row of `conditioning_rows` was made of."""
    tree: Branch = {}
    for path, tensor in row.items():
        name, *below = path.split("/")
        branch = tree.setdefault(name, {})
        for part in below:
            branch = branch.setdefault(part, {})
        branch["tensor"] = tensor
    return {name: built(branch, "") for name, branch in tree.items()}


def built(branch: Branch, name: str) -> Any:
    """The value of a branch that stands under `name`."""
    if "tensor" in branch:
        return BUILT[name if name in BUILT else ""](branch["tensor"])
    first = next(iter(branch))
    if first in BUILT:
        return built(branch[first], first)
    if first.startswith(SEEN):
        out = Output()
        for part, value in branch.items():
            out[part.removeprefix(SEEN)] = built(value, part)
        return out
    if first.startswith(KEY):
        return {part.removeprefix(KEY): built(value, part) for part, value in branch.items()}
    return [built(branch[part], part) for part in sorted(branch, key=int)]


def concatable(conds: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Numbers of the samples, in groups that the host would run as one batch."""
    groups: list[list[int]] = []
    for i, cond in enumerate(conds):
        for group in groups:
            if samplers.cond_equal_size(conds[group[0]], cond):
                group.append(i)
                break
        else:
            groups.append([i])
    return groups
