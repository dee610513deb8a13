"""From pictures and captions to a dataset: latents and conditioning in buckets, cached on the disk."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ..conditioning import alike, text_of
from ..models.source import ModelSource
from .cache import Layout, TensorCache, cache_key
from .captions import caption_variants
from .columns import Keys, Texts
from .dataset import NO_CONTROLS, Captions, LatentDataset, StoredBucket, mold
from .folders import DataProgress
from .images import Control, ImageItem, bucket_sizes, fitted, fitted_mask, look_at_mask, nearest_bucket
from .images import ImageDataset as ImageDataset
from .sheet import Shown, spread

CACHE_VERSION = 1
"""Part of every cache key: raised when the same file and settings would give other tensors."""

MIRRORED = " (mirrored)"
"""How the name of a picture's mirror image ends."""


@dataclass(frozen=True)
class _Picture:
    """What is encoded: a picture in its bucket, perhaps mirrored."""

    item: ImageItem
    size: tuple[int, int]
    flipped: bool

    @property
    def name(self) -> str:
        return self.item.path.name + (MIRRORED if self.flipped else "")


@torch.inference_mode(False)  # hosts run nodes under it; what it makes cannot be trained on
def encode(
    dataset: ImageDataset,
    model: ModelSource,
    resolution: int | None = None,
    cache_dir: Path | None = None,
    progress: DataProgress | None = None,
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
        cache_dir: folder for encoded pictures and captions; None keeps them in memory.
        progress: called after each picture and each caption.
        bucket_step: sides of the other buckets are multiples of it, in pixels.
        max_aspect: largest aspect ratio of a bucket; 1 crops everything to the square.
        flip: add the mirror image of every picture.
        variants: captions of every picture: its own, and the same tags in other orders (`caption_variants`).
        keep_tags: so many tags at the front of a caption stay where they are.

    Raises:
        ValueError: a size that the model cannot take, or a file that cannot be read any more.
        RuntimeError: `cache_dir` cannot be written.
    """
    sizes = _sizes(model, resolution or model.default_resolution, bucket_step, max_aspect)
    encoder = _Encoder(model, cache_dir, dataset.alpha_masks, variants, keep_tags)
    flips = (False, True) if flip else (False,)
    texts = len({item.caption for item in dataset.items}) * variants
    total = len(dataset.items) * len(flips) + texts
    tell = progress or (lambda done, total: None)
    nearest: dict[tuple[int, int], tuple[int, int]] = {}
    try:
        for item in dataset.items:
            shape = (item.width, item.height)
            size = nearest.setdefault(shape, nearest.get(shape) or nearest_bucket(*shape, sizes))
            for flipped in flips:
                encoder.picture(_Picture(item, size, flipped))
                tell(encoder.done, total)
        return encoder.dataset(lambda: tell(encoder.done, total))
    finally:
        encoder.cache.close_index()


def samples_shown(
    dataset: ImageDataset,
    model: ModelSource,
    resolution: int | None = None,
    *,
    bucket_step: int = 64,
    max_aspect: float = 2.0,
    most: int = 24,
) -> list[Shown]:
    """Some pictures as `encode` fits them, in equal distances through the dataset, for a contact sheet."""
    sizes = _sizes(model, resolution or model.default_resolution, bucket_step, max_aspect)
    out = []
    for i in spread(len(dataset.items), most):
        item = dataset.items[i]
        size = nearest_bucket(item.width, item.height, sizes)
        pixels, mask = fitted(item, _read(item.path), *size)
        if item.mask is not None:
            mask = fitted_mask(item, _read(item.mask), *size)
        elif not dataset.alpha_masks:
            mask = None
        often = "" if item.repeats == 1 else f", {item.repeats} times"
        name = item.path.name if len(item.path.name) < 24 else f"...{item.path.name[-20:]}"
        controls = [control_pixels(control, size, model)[0] for control in item.controls]
        out.append(Shown((pixels, *controls), mask, f"{name}  {size[0]}x{size[1]}{often}", item.caption))
    return out


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


@dataclass
class _Rows:
    """What is known of the samples of one bucket."""

    shape: tuple[int, ...]
    keys: Keys = field(default_factory=Keys)
    names: Texts = field(default_factory=Texts)
    texts: array[int] = field(default_factory=lambda: array("i"))
    repeats: array[int] = field(default_factory=lambda: array("q"))
    masked: bool = False
    controls: Keys = field(default_factory=Keys)


class _Encoder:
    """Encodes pictures and captions into the cache, and remembers the keys of all that it has encoded."""

    def __init__(
        self, model: ModelSource, cache_dir: Path | None, alpha_masks: bool, variants: int, keep_tags: int
    ) -> None:
        self.model = model
        self.variants, self.keep_tags = variants, keep_tags
        self.alpha_masks = alpha_masks
        encoders = model.encoder_fingerprint
        self.base = [CACHE_VERSION, encoders, str(model.dtype)]
        self.cache = TensorCache(None if cache_dir is None else Path(cache_dir) / encoders)
        self.rows: dict[tuple[int, int], _Rows] = {}
        self.numbers: dict[str, int] = {}  # of the different captions
        self.written = Texts()
        self.keys = Keys()
        self.done = 0

    def picture(self, picture: _Picture) -> None:
        """Have a picture in the cache and among the rows of its bucket."""
        self.done += 1
        item = picture.item
        read = _Reads(item)
        contents = [read.digest, read.mask_digest, self.alpha_masks]
        key = cache_key("picture", *self.base, contents, picture.size, picture.flipped)
        others = self._variants(item.caption)[1:]
        told = [[c.role, c.digest] for c in item.controls]
        self.keys.append(cache_key(key, item.caption, item.repeats, *others, *([told] if told else [])))
        found = self.cache.ensure(key, lambda: self._encode(picture, read))
        control = self._control(picture, key, told) if told else NO_CONTROLS
        self._put(picture, key, {name: shape for name, _, shape in found}, control)

    def _control(self, picture: _Picture, key: str, told: list[list[str]]) -> str:
        """Have the controls of a picture in the cache; return their key."""
        taking = getattr(self.model, "encode_controls", None)
        if taking is None:
            raise ValueError(
                f"control folders must be left out for {self.model.name}, which takes no controls"
            )
        own = cache_key("controls", key, told)

        def make() -> Mapping[str, Tensor]:
            item = picture.item
            target, _ = fitted(item, _read(item.path), *picture.size)
            given = [(c.role, control_pixels(c, picture.size, self.model)) for c in item.controls]
            if picture.flipped:
                target, given = target.flip(-1), [(role, pixels.flip(-1)) for role, pixels in given]
            made: Mapping[str, Tensor] = taking(given, target[None])
            return made

        self.cache.ensure(own, make)
        return own

    def dataset(self, tell: Callable[[], None]) -> LatentDataset:
        """All pictures so far, with their captions, which are encoded now; `tell` is called after each."""
        layouts: set[Layout] = set()
        keys = Keys()
        for caption in self.written:
            for text in self._variants(caption):
                keys.append(self._caption(text, layouts))
                self.done += 1
                tell()
        empty = self._caption("", layouts)
        captions = Captions(self.cache, keys, mold(sorted(layouts)))
        empty_cond, _ = alike([text_of(self.cache.read(empty)), text_of(captions.mold)])
        buckets = tuple(self._bucket(self.rows[size], captions) for size in sorted(self.rows))
        return LatentDataset(buckets, empty_cond, cache_key(*self.keys)[:16])

    def _put(self, picture: _Picture, key: str, shapes: Mapping[str, tuple[int, ...]], control: str) -> None:
        item = picture.item
        rows = self.rows.setdefault(picture.size, _Rows(shapes["latent"]))
        rows.keys.append(key)
        rows.names.append(picture.name)
        rows.texts.append(self.numbers.setdefault(item.caption, len(self.numbers)))
        if len(self.numbers) > len(self.written):
            self.written.append(item.caption)
        rows.repeats.append(item.repeats)
        rows.masked |= "mask" in shapes
        rows.controls.append(control)

    def _bucket(self, rows: _Rows, captions: Captions) -> StoredBucket:
        return StoredBucket(
            cache=self.cache,
            shape=rows.shape,
            masked=rows.masked,
            keys=rows.keys,
            conds=captions,
            text=torch.tensor(rows.texts, dtype=torch.int32),
            repeats=torch.tensor(rows.repeats, dtype=torch.long),
            names=rows.names,
            written=self.written,
            variants=self.variants,
            controls=rows.controls if any(key != NO_CONTROLS for key in rows.controls) else None,
        )

    def _variants(self, caption: str) -> list[str]:
        """The caption as written, then its variants."""
        return [caption] if self.variants == 1 else caption_variants(caption, self.variants, self.keep_tags)

    def _caption(self, text: str, layouts: set[Layout]) -> str:
        """Have a caption in the cache; return its key, and put in what its conditioning is."""
        key = cache_key("caption", *self.base, text)
        layouts.add(self.cache.ensure(key, lambda: self.model.encode_text([text])))
        return key

    def _encode(self, picture: _Picture, read: _Reads) -> dict[str, Tensor]:
        pixels, mask = fitted(picture.item, read.data(), *picture.size)
        if not self.alpha_masks:
            mask = None
        if read.mask_digest is not None:
            mask = fitted_mask(picture.item, read.mask(), *picture.size)
        if picture.flipped:
            pixels, mask = pixels.flip(-1), None if mask is None else mask.flip(-1)
        latent = self.model.encode_images(pixels[None])[0]
        if mask is None:
            return {"latent": latent}
        return {"latent": latent, "mask": adaptive_avg_pool2d(mask, (latent.shape[-2], latent.shape[-1]))}


def control_pixels(control: Control, size: tuple[int, int], model: ModelSource) -> Tensor:
    """A control as it is encoded, [1, 3, H, W]: cropped to the target's `size`, or a reference in its own shape.

    Raises:
        ValueError: its file cannot be read any more.
    """
    item = ImageItem(control.path, "", control.width, control.height)
    if control.role == "reference":
        step = model.size_multiple
        shrink = min(1.0, (size[0] * size[1] / (control.width * control.height)) ** 0.5)
        sides = (control.width, control.height)
        size = (
            max(step, int(sides[0] * shrink) // step * step),
            max(step, int(sides[1] * shrink) // step * step),
        )
    return fitted(item, _read(control.path), *size)[0][None]


class _Reads:
    """The files of a picture: their digests, and their content where it is needed."""

    def __init__(self, item: ImageItem) -> None:
        self.item = item
        self._data = b""
        self.digest = item.digest or hashlib.sha256(self.data()).hexdigest()
        self.mask_digest: str | None = None
        if item.mask is not None:
            self.mask_digest = item.mask_digest or look_at_mask(self.mask())["digest"]

    def data(self) -> bytes:
        """Content of the picture.

        Raises:
            ValueError: it is not what its folder was read with.
        """
        if not self._data:
            self._data = _read(self.item.path)
            named = self.item.path.stem == self.item.digest  # a file that we named after its pixels
            if self.item.digest and not named and hashlib.sha256(self._data).hexdigest() != self.item.digest:
                raise ValueError(
                    f"picture {self.item.path}: it has changed since its folder was read; queue again"
                )
        return self._data

    def mask(self) -> bytes:
        """Content of its mask."""
        return _read(self.item.mask) if self.item.mask is not None else b""


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as err:
        raise ValueError(f"picture {path}: it cannot be read any more ({err.strerror})") from err
