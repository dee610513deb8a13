"""Samples set aside by a dataset itself, to measure on what is not trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .dataset import LatentDataset, Part
from .encoding import MIRRORED


def hold_out(data: LatentDataset, share: float) -> tuple[LatentDataset, LatentDataset]:
    """Part `data` into what is trained on and what is held out: about `share` of it, at least one sample.

    Who is held out follows from the names alone, by their digests: the same in every run and at every seed, and one
    picture more or less in the data moves hardly any other. Samples of one name (one picture in two sizes) and mirror
    images stay together, so nothing that is held out is trained on in another form.

    Args:
        share: above 0, below 1.

    Raises:
        ValueError: fewer than two different names.
    """
    names = {_picture(name) for bucket in data.buckets for name in bucket.names}
    if len(names) < 2:
        raise ValueError(
            f"hold_out must be 0 for data of fewer than two pictures, got {share:g}; connect data to validation"
        )
    chosen = set(by_digest(names)[: min(max(round(share * len(names)), 1), len(names) - 1)])
    return _part(data, names - chosen), _part(data, chosen)


def by_digest(names: Iterable[str]) -> list[str]:
    """The names in an order that depends on nothing but each of them."""
    return sorted(
        names, key=lambda name: (hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest(), name)
    )


def _part(data: LatentDataset, names: set[str]) -> LatentDataset:
    """The samples of these names, in their order; buckets without any are left out."""
    rows = [_rows(bucket.names, names) for bucket in data.buckets]
    buckets = tuple(bucket.part(own) for bucket, own in zip(data.buckets, rows, strict=True) if len(own))
    return replace(data, buckets=buckets, parts=_parts(data.parts, rows))


def _parts(parts: Sequence[Part], rows: Sequence[Tensor]) -> tuple[Part, ...]:
    """The parts of a mixed dataset of which buckets are left, their shares adding up to 1 again."""
    left, first = [], 0
    for part in parts:
        count = sum(len(own) > 0 for own in rows[first : first + part.buckets])
        first += part.buckets
        if count:
            left.append(replace(part, buckets=count))
    whole = sum(part.share for part in left)
    return tuple(left if whole == 1 else [replace(part, share=part.share / whole) for part in left])


def _picture(name: str) -> str:
    """The picture's name, also of its mirror image."""
    return name.removesuffix(MIRRORED)


def _rows(own: Iterable[str], names: set[str]) -> Tensor:
    return torch.tensor([i for i, name in enumerate(own) if _picture(name) in names], dtype=torch.long)
