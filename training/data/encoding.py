"""From pictures and captions to a dataset: latents and conditioning in buckets, cached on the disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ..conditioning import Cond, joined
from ..models.source import ModelSource
from .cache import TensorCache, cache_key
from .captions import caption_variants
from .dataset import Bucket, LatentDataset, same_sizes
from .images import ImageDataset as ImageDataset
from .images import ImageItem, bucket_sizes, fitted, fitted_mask, nearest_bucket
from .images import read_image_folder as read_image_folder

CACHE_VERSION = 1
"""Part of every cache key: raised when the same file and settings would give other tensors."""


EncodingProgress = Callable[[int, int], None]
"""``progress(done, total)``; may raise to cancel."""


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
    progress: EncodingProgress | None = None,
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
        max_aspect: largest aspect ratio of a bucket; 1 crops everything to the square.
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
