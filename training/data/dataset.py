"""From pictures to batches: encoding in buckets, cached on disk, and the order in which samples are drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ..conditioning import alike, joined
from ..forms import Cond, select
from ..models.source import ModelSource
from .cache import TensorCache, cache_key
from .captions import caption_variants
from .images import ImageDataset as ImageDataset
from .images import ImageItem, bucket_sizes, fitted, fitted_mask, nearest_bucket
from .images import read_image_folder as read_image_folder

CACHE_VERSION = 1
"""Part of every cache key: raised when the same file and settings would give other tensors."""
Progress = Callable[[int, int], None]
"""``progress(done, total)``; may raise to cancel."""


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
    """Named tensors [1, ...], what caption dropout puts in place of a caption; empty where there is none."""
    fingerprint: str
    """Hex digest of pictures, captions, masks, sizes and model: a run resumes on the same data only."""

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self.buckets)

    @property
    def samples_per_epoch(self) -> int:
        """Samples with their repeats."""
        return int(sum(bucket.repeats.sum() for bucket in self.buckets))

    def batch(self, ids: Tensor, captions: torch.Generator | None = None) -> Batch:
        """Return the samples numbered `ids: LongTensor [B]`.

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


@dataclass(frozen=True)
class _Picture:
    """What is encoded: a picture in its bucket, perhaps mirrored."""

    item: ImageItem
    size: tuple[int, int]
    flipped: bool

    @property
    def name(self) -> str:
        return self.item.path.name + (" (mirrored)" if self.flipped else "")


@torch.inference_mode(False)  # hosts run nodes under it; what it makes cannot be trained on
def encode(
    dataset: ImageDataset,
    model: ModelSource,
    resolution: int | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    *,
    bucket_step: int = 64,
    max_aspect: float = 2.0,
    flip: bool = False,
    variants: int = 1,
    keep_tags: int = 1,
) -> LatentDataset:
    """Encode pictures and captions, what is in the cache excepted.

    Args:
        dataset: the pictures.
        model: whose autoencoder and text encoders are used.
        resolution: side in pixels of the square bucket; None takes the model's own.
        cache_dir: folder for encoded pictures and captions; None keeps nothing.
        progress: called after each picture.
        bucket_step: sides of the other buckets are multiples of it, in pixels.
        max_aspect: longest allowed ratio of sides of a bucket; 1 crops everything to the square.
        flip: add the mirror image of every picture.
        variants: captions of every picture: its own, and the same tags in other orders (`caption_variants`).
        keep_tags: so many tags at the front of a caption stay where they are.

    Raises:
        ValueError: a size that the model cannot take, or a file that cannot be read any more.
        OSError: `cache_dir` cannot be written.
    """
    sizes = _sizes(model, resolution or model.default_resolution, bucket_step, max_aspect)
    pictures = [
        _Picture(item, nearest_bucket(item.width, item.height, sizes), flipped)
        for item in dataset.items
        for flipped in ((False, True) if flip else (False,))
    ]
    texts = {c: caption_variants(c, variants, keep_tags) for c in {item.caption for item in dataset.items}}
    encoder = _Encoder(model, cache_dir, dataset.alpha_masks, texts)
    encoded: dict[tuple[int, int], list[tuple[_Picture, Mapping[str, Tensor]]]] = {}
    for i, picture in enumerate(pictures):
        encoded.setdefault(picture.size, []).append((picture, encoder.picture(picture)))
        if progress is not None:
            progress(i + 1, len(pictures))
    buckets = tuple(_bucket(encoded[size], encoder) for size in sorted(encoded))
    return same_sizes(LatentDataset(buckets, encoder.caption(""), encoder.fingerprint()))


def same_sizes(data: LatentDataset) -> LatentDataset:
    """The same data, its conditioning of one size throughout, so that rows can take each other's place."""
    *conds, empty = alike(
        [bucket.cond for bucket in data.buckets] + [data.empty_cond or data.buckets[0].cond]
    )
    buckets = tuple(replace(b, cond=cond) for b, cond in zip(data.buckets, conds, strict=True))
    return replace(data, buckets=buckets, empty_cond=empty if data.empty_cond else {})


def _sizes(model: ModelSource, resolution: int, step: int, max_aspect: float) -> list[tuple[int, int]]:
    """Bucket sizes that the model can take; the square one must be among them."""
    if step <= 0 or step % model.size_multiple:
        raise ValueError(
            f"bucket_step must be a multiple of {model.size_multiple} for {model.name}, got {step}"
        )
    if not max_aspect >= 1:
        raise ValueError(f"max_aspect must be at least 1, got {max_aspect}")
    model.latent_shape(resolution, resolution)
    sizes = []
    for width, height in bucket_sizes(resolution, step, max_aspect):
        try:
            model.latent_shape(height, width)
        except ValueError:  # longer than the model can take: its pictures go to the next bucket
            continue
        sizes.append((width, height))
    return sizes


class _Encoder:
    """Encodes pictures and captions through the cache, and remembers the keys of all that it has encoded."""

    def __init__(
        self,
        model: ModelSource,
        cache_dir: Path | None,
        alpha_masks: bool,
        variants: Mapping[str, Sequence[str]],
    ) -> None:
        self.model = model
        self.variants = variants
        self.alpha_masks = alpha_masks
        encoders = model.encoder_fingerprint
        self.base = [CACHE_VERSION, encoders, str(model.dtype)]
        self.cache = TensorCache(None if cache_dir is None else Path(cache_dir) / encoders)
        self.captions: dict[str, Cond] = {}
        self.keys: list[str] = []

    def caption(self, caption: str) -> Cond:
        """Conditioning [1, ...] of a caption."""
        if caption not in self.captions:
            key = cache_key("caption", *self.base, caption)
            self.captions[caption] = self.cache.fetch(key, lambda: self.model.encode_text([caption]))
        return self.captions[caption]

    def picture(self, picture: _Picture) -> Mapping[str, Tensor]:
        """``latent`` [C, h, w] and, if it has one, ``mask`` [1, h, w] of a picture."""
        item = picture.item
        data = _read(item.path)
        mask = None if item.mask is None else _read(item.mask)
        contents = [
            hashlib.sha256(data).hexdigest(),
            mask and hashlib.sha256(mask).hexdigest(),
            self.alpha_masks,
        ]
        key = cache_key("picture", *self.base, contents, picture.size, picture.flipped)
        self.keys.append(cache_key(key, item.caption, item.repeats, *self.variants[item.caption][1:]))
        return self.cache.fetch(key, lambda: self._encode(picture, data, mask))

    def fingerprint(self) -> str:
        """Hex digest of everything encoded so far, in order."""
        return cache_key(*self.keys)[:16]

    def _encode(self, picture: _Picture, data: bytes, mask_data: bytes | None) -> dict[str, Tensor]:
        pixels, mask = fitted(picture.item, data, *picture.size)
        if not self.alpha_masks:
            mask = None
        if mask_data is not None:
            mask = fitted_mask(picture.item, mask_data, *picture.size)
        if picture.flipped:
            pixels, mask = pixels.flip(-1), None if mask is None else mask.flip(-1)
        latent = self.model.encode_images(pixels[None])[0].float()
        if mask is None:
            return {"latent": latent}
        return {"latent": latent, "mask": adaptive_avg_pool2d(mask, (latent.shape[-2], latent.shape[-1]))}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as err:
        raise ValueError(f"picture {path}: it cannot be read any more ({err.strerror})") from err


def _bucket(encoded: list[tuple[_Picture, Mapping[str, Tensor]]], encoder: _Encoder) -> Bucket:
    items = [picture.item for picture, _ in encoded]
    texts = [encoder.variants[item.caption] for item in items]
    conds = [encoder.caption(text) for own in texts for text in own]
    latents = torch.stack([tensors["latent"] for _, tensors in encoded]).cpu()
    masks = None
    if any("mask" in tensors for _, tensors in encoded):
        everywhere = torch.ones(1, *latents.shape[-2:])
        masks = torch.stack([tensors.get("mask", everywhere) for _, tensors in encoded])
        between = [1] * (latents.ndim - masks.ndim)  # the frames of a video model
        masks = masks.reshape(len(masks), 1, *between, *masks.shape[-2:])
    return Bucket(
        latents=latents,
        cond={name: value.cpu() for name, value in joined(conds).items()},
        masks=masks,
        repeats=torch.tensor([item.repeats for item in items]),
        names=tuple(picture.name for picture, _ in encoded),
        captions=tuple(item.caption for item in items),
        variants=len(texts[0]),
    )


class BatchOrder:
    """Draws batches, each from one bucket: every sample comes `repeats` times an epoch, in random order.

    What does not fill a batch at the end of an epoch is carried into the next one, so that batches are
    always whole, and a batch may be larger than its bucket.

    Args:
        dataset: the samples.
        batch_size: B, at least 1.
        generator: CPU stream of the shuffling, drawn from as an epoch begins; its state is its owner's to keep.
    """

    def __init__(self, dataset: LatentDataset, batch_size: int, generator: torch.Generator) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.dataset = dataset
        self.batch_size = batch_size
        self.generator = generator
        self.epoch = 0
        """Epochs begun."""
        # Replaced, never written into: a state may hold on to them.
        self._queue = torch.empty(0, batch_size, dtype=torch.long)  # batches left of this epoch
        self._carry = torch.empty(0, dtype=torch.long)  # samples left over from it

    def next(self, captions: torch.Generator | None = None) -> Batch:
        """Return the next batch; `captions` as in `LatentDataset.batch`."""
        while not len(self._queue):
            self._begin_epoch()
        ids, self._queue = self._queue[0], self._queue[1:]
        return self.dataset.batch(ids, captions)

    def _begin_epoch(self) -> None:
        batches, carry = [], []
        start = 0
        for bucket in self.dataset.buckets:
            ids = torch.arange(start, start + len(bucket)).repeat_interleave(bucket.repeats)
            left = self._carry[(self._carry >= start) & (self._carry < start + len(bucket))]
            stream = torch.cat([left, ids[torch.randperm(len(ids), generator=self.generator)]])
            whole = len(stream) // self.batch_size * self.batch_size
            batches.append(stream[:whole].view(-1, self.batch_size))
            carry.append(stream[whole:])
            start += len(bucket)
        queue = torch.cat(batches)
        self._queue = queue[torch.randperm(len(queue), generator=self.generator)]
        self._carry = torch.cat(carry)
        self.epoch += 1

    def state_dict(self) -> dict[str, Any]:
        """Where the order stands: tensors and plain values."""
        return {"version": 1, "epoch": self.epoch, "queue": self._queue, "carry": self._carry}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: it is of another version, batch size or dataset.
        """
        if state["version"] != 1:
            raise ValueError(f"the data order must be of version 1, got {state['version']}")
        queue, carry = state["queue"], state["carry"]
        if queue.shape[-1] != self.batch_size:
            raise ValueError(
                f"batch_size must be {queue.shape[-1]} as in the saved run, got {self.batch_size}"
            )
        if bool((torch.cat([queue.flatten(), carry]) >= len(self.dataset)).any()):
            raise ValueError(f"the dataset must be the saved run's, got one of {len(self.dataset)} samples")
        self.epoch = int(state["epoch"])
        self._queue, self._carry = queue, carry
