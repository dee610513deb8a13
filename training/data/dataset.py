"""From pictures to batches: encoding in buckets, cached on disk, and the order in which samples are drawn."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..conditioning import Cond, alike, controls_of, select, text_of
from .images import ImageDataset as ImageDataset
from .images import read_image_folder as read_image_folder


@dataclass(frozen=True)
class Bucket:
    """N encoded samples of one size. On the CPU."""

    latents: Tensor
    """[N, C, h, w] float32, as the network sees them."""
    cond: Cond
    """Named tensors [N * variants, ...]: of each sample its caption as written, then the caption's variants."""
    masks: Tensor | None
    """[N, 1, h, w] (with the latents' other axes as 1) in [0, 1]; None: every sample counts everywhere."""
    repeats: Tensor
    """LongTensor [N]: how often each is drawn in an epoch."""
    names: tuple[str, ...]
    captions: tuple[str, ...]
    variants: int = 1
    """Captions of each sample."""

    def __len__(self) -> int:
        return len(self.latents)

    def captioned(self, rows: Tensor, generator: torch.Generator | None) -> Cond:
        """Conditioning [B, ...] of the samples `rows: LongTensor [B]`, each with a variant that is drawn.

        Args:
            generator: None takes the captions as written.
        """
        if self.variants == 1:
            return select(self.cond, rows)
        first = rows * self.variants
        if generator is None:
            return select(self.cond, first)
        return select(self.cond, first + torch.randint(self.variants, rows.shape, generator=generator))


@dataclass(frozen=True)
class Batch:
    """B samples of one bucket."""

    x0: Tensor
    """[B, C, h, w]"""
    cond: Cond
    mask: Tensor | None
    """[B, 1, h, w] or None"""
    ids: Tensor
    """LongTensor [B]: numbers of the samples in the dataset; on the CPU."""

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`."""
        cond = {name: value.to(device) for name, value in self.cond.items()}
        mask = None if self.mask is None else self.mask.to(device)
        return Batch(self.x0.to(device), cond, mask, self.ids)


@dataclass(frozen=True)
class LatentDataset:
    """Encoded samples, numbered through all buckets, and the conditioning of the empty caption."""

    buckets: tuple[Bucket, ...]
    empty_cond: Cond
    """Text alone, named tensors [1, ...]: what caption dropout puts in a caption's place; empty where there is none."""
    fingerprint: str
    """Hex digest of pictures, captions, masks, sizes and model: a run resumes on the same data only."""

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self.buckets)

    @property
    def samples_per_epoch(self) -> int:
        """Samples with their repeats."""
        return int(sum(bucket.repeats.sum() for bucket in self.buckets))

    def batch(self, ids: Tensor, captions: torch.Generator | None = None) -> Batch:
        """The samples numbered `ids: LongTensor [B]`.

        Args:
            captions: stream that draws which variant of its caption a sample gets; None takes it as written.

        Raises:
            ValueError: they are not all of one bucket.
        """
        rows = ids
        for bucket in self.buckets:
            if bool(((rows >= 0) & (rows < len(bucket))).all()):
                mask = None if bucket.masks is None else bucket.masks[rows]
                return Batch(bucket.latents[rows], bucket.captioned(rows, captions), mask, ids)
            rows = rows - len(bucket)
        raise ValueError(f"ids must be of samples of one bucket, got {ids.tolist()}")

    def summary(self) -> str:
        """A line for each bucket."""
        lines = []
        for bucket in self.buckets:
            shape = "x".join(str(n) for n in bucket.latents.shape[1:])
            lines.append(f"{len(bucket)} latents {shape}, {int(bucket.repeats.sum())} samples an epoch")
        return "\n".join(lines)


def same_sizes(data: LatentDataset) -> LatentDataset:
    """The same data, its text of one size throughout, so that rows can take each other's place; controls stay."""
    texts = [text_of(bucket.cond) for bucket in data.buckets]
    *texts, empty = alike([*texts, text_of(data.empty_cond) or texts[0]])
    buckets = tuple(
        replace(b, cond={**text, **controls_of(b.cond)}) for b, text in zip(data.buckets, texts, strict=True)
    )
    return replace(data, buckets=buckets, empty_cond=empty if data.empty_cond else {})
