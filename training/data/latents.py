"""Data from latents and conditioning that are encoded already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..conditioning import Cond, joined
from ..files import digest
from .cache import cache_key
from .dataset import Bucket, LatentDataset, same_sizes

T = TypeVar("T")


@dataclass(frozen=True)
class Latents:
    """N latents of one size."""

    samples: Tensor
    """[N, C, ...] as the network sees them."""
    mask: Tensor | None
    """[1 or N, (1,) H, W], or [1 or N, 1, F, H, W] with as many frames as the latents; of any size; or None."""
    controls: Sequence[Cond] | None = None
    """Conditioning [1, ...] of each of the N that goes with the latent, not with its caption, as frames it is given."""


def dataset_from_latents(
    latents: Sequence[Latents],
    conds: Sequence[Cond],
    empty: Cond | None,
    masks: Sequence[Tensor] | None,
    repeats: int,
    name: str,
) -> LatentDataset:
    """Put latents and captions together; latents of one size are a bucket.

    Args:
        latents: batches; those of one size may come in any number of them.
        conds: the conditioning [1, ...] of each sample, in the order of the latents, or one for all.
        empty: conditioning of the empty caption; None: caption dropout is not possible.
        masks: [1, H, W] for each sample or one for all; they go before the masks that latents carry.
        repeats: how often each sample comes in an epoch.
        name: of the model, part of the fingerprint.

    Raises:
        ValueError: no latents, or captions or masks that are neither one nor as many as there are latents.
    """
    samples = [row for given in latents for row in given.samples.split(1)]
    own_masks = [mask for given in latents for mask in _masks(given)]
    if not samples:
        raise ValueError("latents must hold at least one picture, got none")
    controls = [own for given in latents for own in given.controls or [{}] * len(given.samples)]
    conds = _matched("conditioning", "captions", conds, len(samples))
    conds = [{**cond, **own} for cond, own in zip(conds, controls, strict=True)]
    if masks is not None:
        own_masks = list(_matched("masks", "masks", masks, len(samples)))
    sizes: dict[tuple[int, ...], list[int]] = {}
    for i, sample in enumerate(samples):
        sizes.setdefault(tuple(sample.shape[1:]), []).append(i)
    buckets = tuple(
        Bucket(
            latents=torch.cat([samples[i] for i in members]).cpu(),
            cond={k: v.cpu() for k, v in joined([conds[i] for i in members]).items()},
            masks=_bucket_masks([own_masks[i] for i in members], samples[members[0]]),
            repeats=torch.full((len(members),), repeats),
            names=tuple(f"latent {i}" for i in members),
            captions=("",) * len(members),
        )
        for members in sizes.values()
    )
    empty = {} if empty is None else {k: v.cpu() for k, v in empty.items()}
    return same_sizes(LatentDataset(buckets, empty, _fingerprint(name, buckets)))


def _matched(what: str, things: str, given: Sequence[T], n: int) -> Sequence[T]:
    """One for each of `n` latents."""
    if len(given) not in (1, n):
        raise ValueError(
            f"{what} must be one for all or one for each of {n} latents, got {len(given)} {things}"
        )
    return list(given) * n if len(given) == 1 else given


def _masks(given: Latents) -> list[Tensor | None]:
    n = len(given.samples)
    if given.mask is None:
        return [None] * n
    mask = given.mask
    rows = mask.split(1) if mask.ndim == 5 else mask.reshape(-1, 1, *mask.shape[-2:]).split(1)
    return [rows[i if len(rows) == n else 0] for i in range(n)]


def _bucket_masks(masks: Sequence[Tensor | None], sample: Tensor) -> Tensor | None:
    """[N, 1, (1 or F,) h, w] at the latents' size; None where no sample has one.

    Raises:
        ValueError: a mask of frames has other frames than the latents.
    """
    if all(mask is None for mask in masks):
        return None
    out = [_fitted(mask, sample).cpu() for mask in masks]
    frames = max(mask.shape[2:-2] for mask in out)
    return torch.cat([mask.expand(1, 1, *frames, *sample.shape[-2:]) for mask in out])


def _fitted(mask: Tensor | None, sample: Tensor) -> Tensor:
    """[1, 1, (1 or F,) h, w]: a mask at the size of a latent."""
    size, between = sample.shape[-2:], [1] * (sample.ndim - 4)
    if mask is None:
        return torch.ones(1, 1, *between, *size)
    if mask.ndim == 5 and sample.ndim == 5:
        between = [mask.shape[2]]
        if mask.shape[2] not in (1, sample.shape[2]):
            raise ValueError(
                f"a mask must have as many frames as its latent, {sample.shape[2]}, got {mask.shape[2]}"
            )
    own = mask.float().reshape(-1, 1, *mask.shape[-2:])
    return interpolate(own, size, mode="area").reshape(1, 1, *between, *size)


def _fingerprint(name: str, buckets: Sequence[Bucket]) -> str:
    parts: list[tuple[str, Tensor]] = []
    for i, bucket in enumerate(buckets):
        tensors: Mapping[str, Tensor | None] = {
            "latents": bucket.latents,
            "masks": bucket.masks,
            "repeats": bucket.repeats,
            **bucket.cond,
        }
        parts += [(f"{i}.{k}", v) for k, v in tensors.items() if v is not None]
    return cache_key(name, digest(parts, sample=None))[:16]
