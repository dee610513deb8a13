"""Encoded samples in buckets of one size: in memory, or read from the cache when a batch is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...samplers import sent
from ..conditioning import ABSENT, SHAPE, Cond, alike, controls_of, joined, placed, select, text_of
from .cache import Layout, TensorCache
from .columns import Keys, Texts
from .folders import read_image_folder as read_image_folder
from .images import ImageDataset as ImageDataset


@dataclass(frozen=True)
class Bucket:
    """N encoded samples of one size, in memory. On the CPU."""

    latents: Tensor
    """[N, C, h, w] float32, as the network sees them."""
    cond: Cond
    """Named tensors [N * variants, ...]: of each sample its caption as written, then the caption's variants."""
    masks: Tensor | None
    """[N, 1, h, w] (with the latents' other axes as 1) in [0, 1]; None: every sample counts everywhere."""
    repeats: Tensor
    """LongTensor [N]: how often each is drawn in an epoch."""
    names: Sequence[str]
    captions: Sequence[str]
    variants: int = 1
    """Captions of each sample."""

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, h, w) of each latent."""
        return tuple(self.latents.shape[1:])

    def part(self, rows: Tensor) -> Bucket:
        """The samples `rows: LongTensor [M]` alone."""
        texts = (rows[:, None] * self.variants + torch.arange(self.variants)).flatten()
        return replace(
            self,
            latents=self.latents[rows],
            cond=select(self.cond, texts),
            masks=None if self.masks is None else self.masks[rows],
            repeats=self.repeats[rows],
            names=tuple(self.names[i] for i in rows.tolist()),
            captions=tuple(self.captions[i] for i in rows.tolist()),
        )

    def texts(self, rows: Tensor, variant: Tensor) -> Tensor:
        """Numbers of the captions [B] that the samples `rows` have in their variants `variant`, both [B]."""
        return rows * self.variants + variant

    def read(self, rows: Tensor, texts: Tensor) -> tuple[Tensor, Cond, Tensor | None]:
        """Latents, conditioning and masks [B, ...] of the samples `rows` with the captions numbered `texts`."""
        masks = None if self.masks is None else self.masks[rows]
        return self.latents[rows], select(self.cond, texts), masks


@dataclass(frozen=True)
class Captions:
    """The conditioning of all captions of a dataset, each kept once, whatever number of samples has it."""

    cache: TensorCache
    keys: Keys
    """Of each caption's conditioning in the cache."""
    mold: Cond
    """One row as large as the largest of every tensor: what rows are padded to, so that they can change places."""

    def read(self, texts: Tensor) -> Cond:
        """Conditioning [B, ...] of the captions numbered `texts: LongTensor [B]`."""
        numbers = texts.tolist()
        if not self._ragged:
            rows = self.cache.rows([self.keys[n] for n in numbers])
            if rows is not None:
                return {name: value.flatten(0, 1) for name, value in rows.items()}
        found = {n: self.cache.read(self.keys[n]) for n in dict.fromkeys(numbers)}
        return self.molded([found[n] for n in numbers])

    @property
    def _ragged(self) -> bool:
        """Whether captions differ in size."""
        return any(name.endswith(SHAPE) for name in self.mold)

    def molded(self, conds: Sequence[Cond]) -> Cond:
        """The rows of several conditionings, at the sizes that all rows of the dataset have."""
        if not self._ragged:
            return joined(conds)
        return {name: value[:-1] for name, value in joined([*conds, self.mold]).items()}


def mold(layouts: Iterable[Layout]) -> Cond:
    """A row that is as large as the largest of `layouts` in every tensor, with companions where they differ."""
    shapes = [
        {name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for name, dtype, shape in one}
        for one in dict.fromkeys(layouts)
    ]
    out: dict[str, Tensor] = {}
    for name, value in alike(shapes)[0].items() if shapes else ():
        if name.endswith(SHAPE):
            out[name] = torch.tensor([[1, *out[name.removesuffix(SHAPE)].shape[1:]]])
        else:
            out[name] = torch.zeros(1, *value.shape[1:], dtype=value.dtype)
    return out


NO_CONTROLS = "0" * 32
"""In place of the key of a sample that has none."""


@dataclass(frozen=True)
class StoredBucket:
    """N encoded samples of one size, read from the cache when asked."""

    cache: TensorCache
    shape: tuple[int, ...]
    """(C, h, w) of each latent."""
    masked: bool
    """Some samples have a mask; the others count everywhere."""
    keys: Keys
    """[N]: of latents in the cache."""
    conds: Captions
    text: Tensor
    """IntTensor [N]: number of each sample's caption among the different ones."""
    repeats: Tensor
    """LongTensor [N]: how often each is drawn in an epoch."""
    names: Sequence[str]
    written: Sequence[str]
    """The different captions of the dataset."""
    variants: int = 1
    """Captions of each sample: as written, then in other orders."""
    controls: Keys | None = None
    """[N]: of what belongs to a sample whatever its caption is; `NO_CONTROLS`: nothing does. None: to none of them."""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def captions(self) -> tuple[str, ...]:
        """The caption of each sample, as written."""
        return tuple(self.written[i] for i in self.text.tolist())

    def texts(self, rows: Tensor, variant: Tensor) -> Tensor:
        """Numbers of the captions [B] that the samples `rows` have in their variants `variant`, both [B]."""
        return self.text[rows].long() * self.variants + variant

    def read(self, rows: Tensor, texts: Tensor) -> tuple[Tensor, Cond, Tensor | None]:
        """Latents (float32), conditioning and masks [B, ...] of the samples `rows` with the captions `texts`.

        Raises:
            RuntimeError: the cache does not hold them any more.
        """
        latents, masks = self._read([self.keys[i] for i in rows.tolist()])
        if masks is not None:
            between = [1] * (latents.ndim - masks.ndim)  # the frames of a video model
            masks = masks.reshape(len(masks), 1, *between, *masks.shape[-2:])
        return latents, {**self.conds.read(texts), **self._controls(rows)}, masks

    def _read(self, keys: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Latents (float32) and masks of samples; None: no sample of the bucket has one."""
        alike = self.cache.rows(keys)
        if alike is not None and (not self.masked or "mask" in alike):
            return alike["latent"].float(), alike["mask"] if self.masked else None
        tensors = [self.cache.read(key) for key in keys]
        everywhere = torch.ones(1, *self.shape[-2:])
        masks = torch.stack([t.get("mask", everywhere) for t in tensors]) if self.masked else None
        return torch.stack([t["latent"].float() for t in tensors]), masks

    def _controls(self, rows: Tensor) -> Cond:
        """The controls [B, ...] of samples; rows may differ in what they have."""
        keys = [] if self.controls is None else [self.controls[i] for i in rows.tolist()]
        conds = [{} if key == NO_CONTROLS else self.cache.read(key) for key in keys]
        some = next((cond for cond in conds if cond), None)
        if some is None:
            return {}
        absent: dict[str, Tensor] = {}
        for name, value in some.items():
            absent[name] = torch.zeros_like(value)
            absent[name + SHAPE] = torch.full((1, value.ndim), ABSENT)
        return joined([cond or absent for cond in conds])

    def part(self, rows: Tensor) -> StoredBucket:
        """The samples `rows: LongTensor [M]` alone."""
        chosen = rows.tolist()
        return replace(
            self,
            keys=Keys(self.keys[i] for i in chosen),
            text=self.text[rows],
            controls=None if self.controls is None else Keys(self.controls[i] for i in chosen),
            repeats=self.repeats[rows],
            names=Texts(self.names[i] for i in chosen),
        )

    def held(self) -> Bucket:
        """The same bucket in memory."""
        rows = torch.arange(len(self))
        texts = self.texts(rows[:, None], torch.arange(self.variants)).flatten()
        latents, _, masks = self.read(rows, texts[:: self.variants])
        cond = {**self.conds.read(texts), **self._controls(rows.repeat_interleave(self.variants))}
        return Bucket(latents, cond, masks, self.repeats, tuple(self.names), self.captions, self.variants)


@dataclass(frozen=True)
class Part:
    """One of the datasets that a mixed dataset was made of."""

    buckets: int
    """How many buckets are its own; those of the parts follow each other."""
    share: float
    """Of the batches, in (0, 1]; the shares of all parts add up to 1."""
    empty_cond: Cond
    """As `LatentDataset.empty_cond`."""
    caption_dropout: float | None = None
    """Its own chance that a caption is left out; None: the run's."""
    loss_weight: float = 1.0
    """What its loss is multiplied with."""


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
    part: Part | None = None
    """Of a mixed dataset, the part that the samples are of."""

    def at(self, rows: Tensor) -> Batch:
        """The samples at `rows: LongTensor [A]` of the batch."""
        mask = None if self.mask is None else self.mask[rows]
        return replace(self, x0=self.x0[rows], cond=select(self.cond, rows), mask=mask, ids=self.ids[rows])

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`."""
        mask = None if self.mask is None else sent(self.mask, device)
        return replace(self, x0=sent(self.x0, device), cond=placed(self.cond, device), mask=mask)


@dataclass(frozen=True)
class Draw:
    """What a batch will hold, before it is read: numbers alone."""

    bucket: Bucket | StoredBucket
    ids: Tensor
    """LongTensor [B]: the samples, numbered in the dataset."""
    rows: Tensor
    """LongTensor [B]: the same, numbered in the bucket."""
    texts: Tensor
    """LongTensor [B]: their captions, numbered as the bucket numbers them."""
    part: Part | None = None

    def read(self) -> Batch:
        """The batch."""
        x0, cond, mask = self.bucket.read(self.rows, self.texts)
        return Batch(x0, cond, mask, self.ids, self.part)

    def same(self, other: Draw) -> bool:
        """Whether both are of one dataset and will give the same batch."""
        return (
            self.bucket is other.bucket
            and torch.equal(self.ids, other.ids)
            and torch.equal(self.texts, other.texts)
        )


@dataclass(frozen=True)
class LatentDataset:
    """Encoded samples, numbered through all buckets, and the conditioning of the empty caption."""

    buckets: tuple[Bucket | StoredBucket, ...]
    empty_cond: Cond
    """Text alone, named tensors [1, ...]: what caption dropout puts in a caption's place; empty where there is none."""
    fingerprint: str
    """Hex digest of pictures, captions, masks, sizes and model: a run resumes on the same data only."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """What a user should know of it, a line each."""
    parts: tuple[Part, ...] = ()
    """Of a mixed dataset."""
    folders: tuple[tuple[str, int, int], ...] = field(default=(), compare=False)
    """Name, repeats and number of pictures of each folder that it was read from; names alone, no paths."""

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self.buckets)

    @property
    def samples_per_epoch(self) -> int:
        """Samples with their repeats."""
        return int(sum(bucket.repeats.sum() for bucket in self.buckets))

    @property
    def stored(self) -> bool:
        """Whether samples are read from the disk, which takes time."""
        return any(isinstance(b, StoredBucket) and b.cache.folder is not None for b in self.buckets)

    def draw(self, ids: Tensor, captions: torch.Generator | None = None) -> Draw:
        """Say what the samples numbered `ids: LongTensor [B]` are.

        Args:
            captions: stream that draws which variant of its caption a sample gets; None takes it as written.

        Raises:
            ValueError: they are not all of one bucket.
        """
        rows = ids
        owners: list[Part | None] = [part for part in self.parts for _ in range(part.buckets)]
        owners = owners or [None] * len(self.buckets)
        for bucket, part in zip(self.buckets, owners, strict=True):
            if bool(((rows >= 0) & (rows < len(bucket))).all()):
                variant = torch.zeros_like(rows)
                if captions is not None and bucket.variants > 1:
                    variant = torch.randint(bucket.variants, rows.shape, generator=captions)
                return Draw(bucket, ids, rows, bucket.texts(rows, variant), part)
            rows = rows - len(bucket)
        raise ValueError(f"ids must be of samples of one bucket, got {ids.tolist()}")

    def batch(self, ids: Tensor, captions: torch.Generator | None = None) -> Batch:
        """The samples numbered `ids: LongTensor [B]`; arguments and errors are those of `draw`."""
        return self.draw(ids, captions).read()

    def not_finite(self, ids: Tensor) -> list[str]:
        """Names of those of the samples numbered `ids`, of one bucket, that hold numbers which are not finite."""
        draw = self.draw(ids)
        batch = draw.read()
        values = [batch.x0, *batch.cond.values(), *(() if batch.mask is None else (batch.mask,))]
        rows = [v for v in values if v.is_floating_point() and len(v) == len(ids)]
        fine = torch.stack([v.flatten(1).isfinite().all(1) for v in rows]).all(0)
        return [draw.bucket.names[int(row)] for row in draw.rows[~fine]]

    def held(self) -> LatentDataset:
        """The same data in memory."""
        buckets = tuple(b.held() if isinstance(b, StoredBucket) else b for b in self.buckets)
        return replace(self, buckets=buckets)

    def summary(self) -> str:
        """A line for each bucket, behind one for each part of a mixed dataset, and the notes."""
        firsts: dict[int, Part] = {}
        for part in self.parts:
            firsts[sum(p.buckets for p in firsts.values())] = part
        lines = []
        for i, bucket in enumerate(self.buckets):
            if i in firsts:
                lines.append(f"{firsts[i].share:.0%} of the batches, loss weight {firsts[i].loss_weight:g}:")
            shape = "x".join(str(n) for n in bucket.shape)
            lines.append(f"{len(bucket)} latents {shape}, {int(bucket.repeats.sum())} samples an epoch")
        return "\n".join([*lines, *self.notes])


def same_sizes(data: LatentDataset) -> LatentDataset:
    """The same data, all in memory, its text of one size, so that rows can take each other's place; controls stay."""
    held = data.held()
    conds = [bucket.cond for bucket in held.buckets if isinstance(bucket, Bucket)]
    *texts, empty = alike([*map(text_of, conds), text_of(data.empty_cond) or text_of(conds[0])])
    buckets = tuple(
        replace(b, cond={**text, **controls_of(b.cond)})
        for b, text in zip(held.buckets, texts, strict=True)
        if isinstance(b, Bucket)
    )
    return replace(held, buckets=buckets, empty_cond=empty if data.empty_cond else {})
