"""Samples set aside by a dataset itself, to measure on what is not trained on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .dataset import Bucket, LatentDataset, Part, StoredBucket
from .encoding import FROM, MIRRORED

PART = re.compile(rf"{FROM}\d+$")


def hold_out(data: LatentDataset, share: float) -> tuple[LatentDataset, LatentDataset]:
    """Part `data` into what is trained on and what is held out: about `share` of it, at least one sample.

    Who is held out follows from the names alone, by their digests: the same in every run and at every seed, and one
    picture more or less in the data moves hardly any other. Samples of one name (one picture in two sizes), mirror
    images and the parts of one clip stay together, so nothing that is held out is trained on in another form. Of a
    mixed dataset every part gives its share.

    Args:
        share: above 0, below 1.

    Raises:
        ValueError: fewer than two different names.
    """
    taught: list[Bucket | StoredBucket] = []
    held: list[Bucket | StoredBucket] = []
    parts, first = [], 0
    for part in data.parts or (Part(len(data.buckets), 1.0, data.empty_cond),):
        own, first = data.buckets[first : first + part.buckets], first + part.buckets
        names = {_picture(name) for bucket in own for name in bucket.names}
        chosen = set(by_digest(names)[: min(max(round(share * len(names)), 1), len(names) - 1)])
        kept = _of(own, names - chosen)
        taught, held = [*taught, *kept], [*held, *_of(own, chosen)]
        parts.append(replace(part, buckets=len(kept)))
    if not held:
        raise ValueError(
            f"hold_out must be 0 for data of fewer than two pictures, got {share:g}; connect data to validation"
        )
    kept_parts = tuple(parts) if data.parts else ()
    return replace(data, buckets=tuple(taught), parts=kept_parts), replace(
        data, buckets=tuple(held), parts=()
    )


def by_digest(names: Iterable[str]) -> list[str]:
    """The names in an order that depends on nothing but each of them."""
    return sorted(
        names, key=lambda name: (hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest(), name)
    )


def _of(buckets: Sequence[Bucket | StoredBucket], names: set[str]) -> list[Bucket | StoredBucket]:
    """The samples of these names, in their order; buckets without any are left out."""
    rows = [_rows(bucket.names, names) for bucket in buckets]
    return [bucket.part(own) for bucket, own in zip(buckets, rows, strict=True) if len(own)]


def _picture(name: str) -> str:
    """The picture's name, also of its mirror image and of every part of a clip."""
    return PART.sub("", name.removesuffix(MIRRORED))


def _rows(own: Iterable[str], names: set[str]) -> Tensor:
    return torch.tensor([i for i, name in enumerate(own) if _picture(name) in names], dtype=torch.long)
