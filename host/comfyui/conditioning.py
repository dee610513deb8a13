"""CONDITIONING of ComfyUI as rows of named tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from comfy import samplers
from torch import Tensor

REFUSED = ("control", "area", "mask", "gligen", "hooks", "start_percent", "end_percent", "timestep_start")
"""Conditioning that applies to a part of a picture or of a trajectory; no sample of a data set has such."""


Row = Mapping[str, Tensor]
"""Conditioning of one sample: tensors [1, ...] by the host's names; one of no other axis is a number."""


def conditioning_rows(conditioning: Sequence[Any]) -> list[dict[str, Tensor]]:
    """The samples in a CONDITIONING: one for each entry, or for each row of an entry that is a batch.

    Raises:
        ValueError: conditioning of a part of a picture or a trajectory, or of a kind that is neither tensor nor number.
    """
    rows: list[dict[str, Tensor]] = []
    for context, options in conditioning:
        named = {"cross_attn": context, **options}
        refused = [name for name in REFUSED if named.get(name) is not None]
        if refused:
            raise ValueError(
                f"conditioning must apply to the whole picture and to every step, got {', '.join(refused)}; "
                "remove the nodes that limit it"
            )
        n = 1 if context is None else len(context)
        kept = {k: as_tensor(k, v, n) for k, v in named.items() if v is not None}
        rows += [{k: v[i : i + 1] for k, v in kept.items()} for i in range(n)]
    return rows


def as_tensor(name: str, value: Any, n: int) -> Tensor:
    """A value in a CONDITIONING as a tensor with `n` rows."""
    if isinstance(value, Tensor) and value.ndim > 1 and len(value) in (1, n):
        return value.detach().clone().expand(n, *value.shape[1:])
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return torch.full((n,), value, dtype=torch.long if isinstance(value, int) else torch.float32)
    kind = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise ValueError(f"conditioning {name} must be a number, or a tensor with a row per caption, got {kind}")


def as_given(value: Tensor) -> Any:
    """Inverse of `as_tensor` for one row."""
    return value.item() if value.ndim == 1 else value


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
