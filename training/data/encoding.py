"""From pictures and captions to a dataset: latents and conditioning in buckets, cached on the disk."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ..conditioning import alike, text_of
from ..models.frames import Frames
from ..models.source import ModelSource
from .cache import Layout, TensorCache, cache_key
from .captions import caption_variants
from .clips import MOVIES, Clip, ClipReader, Cut, Cutting, cuts, length, resampled
from .columns import Keys, Texts
from .dataset import NO_CONTROLS, Captions, LatentDataset, StoredBucket, mold
from .folders import DataProgress
from .images import (
    SHOWN,
    Control,
    ImageItem,
    Items,
    Role,
    bucket_sizes,
    fitted,
    fitted_frame,
    fitted_mask,
    look_at_mask,
    nearest_bucket,
)
from .images import ImageDataset as ImageDataset
from .sheet import Shown, spread

CACHE_VERSION = 1
"""Part of every cache key: raised when the same file and settings would give other tensors."""

MIRRORED = " (mirrored)"
"""How the name of a picture's mirror image ends."""
BRACKETS = re.compile(r"[()]")
"""What weighs words in ComfyUI."""
FROM = " from frame "
"""What stands before the number of its first frame, from 0, in the name of a part of a clip but the first."""


@dataclass(frozen=True)
class _Picture:
    """What is encoded: a picture or a part of a clip in its bucket, perhaps mirrored."""

    item: ImageItem
    size: tuple[int, int]
    flipped: bool
    cut: Cut | None = None
    """The frames of a clip; None: a picture, or the first frame."""

    @property
    def name(self) -> str:
        part = f"{FROM}{self.cut.first}" if self.cut is not None and self.cut.first else ""
        return self.item.path.name + part + (MIRRORED if self.flipped else "")

    @property
    def frames(self) -> int:
        return 1 if self.cut is None else self.cut.frames


class Cutter:
    """Cuts clips into samples that a model can take.

    Args:
        model: one that makes clips says so by ``clip_frames`` and ``frame_rate``; others take pictures alone.
        cutting: what is wanted.
    """

    def __init__(self, model: ModelSource, cutting: Cutting) -> None:
        self.cutting = cutting
        self._model = model.name
        self._whole: Callable[[int], int] = getattr(model, "clip_frames", lambda most: 1)
        self.makes_clips = self._whole(1 << 10) > 1
        self.fps = cutting.fps or (getattr(model, "frame_rate", 0.0) if self.makes_clips else 0.0)

    def cuts(self, item: ImageItem) -> list[Cut | None]:
        """The samples of a picture or clip; None: as a picture."""
        if item.clip is None or not self.makes_clips:
            return [None]
        available = length(item.clip.frames, item.clip.seconds, self.fps)
        count = self._whole(min(available, self.cutting.frames))
        return list(cuts(available, count, self.cutting.part)) if count > 1 else [None]

    def note(self, item: ImageItem) -> str:
        """What is used of a clip."""
        name, clip, used = item.path.name, item.clip or Clip(1, 0.0), self.cuts(item)
        if not self.makes_clips:
            return (
                f"{name}: only the first of its {clip.frames} frames is used, as {self._model} makes pictures"
            )
        available = length(clip.frames, clip.seconds, self.fps)
        at = f" at {self.fps:g} per second" if self.fps else ""
        if used == [None]:
            wanted = min(available, self.cutting.frames)
            return f"{name}: its first frame as a still, as {wanted} frames{at} are too few for a clip"
        parts = f" in {len(used)} samples" if len(used) > 1 else ""
        return f"{name}: {sum(cut.frames for cut in used if cut)} of {available} frames{at}{parts}"


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
    caption_weights: bool = False,
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
        caption_weights: ``(word:1.2)`` in a caption weighs a word, as in prompts; off, brackets are text as any other.

    Raises:
        ValueError: a size that the model cannot take, or a file that cannot be read any more.
        RuntimeError: `cache_dir` cannot be written.
    """
    sizes = _sizes(model, resolution or model.default_resolution, bucket_step, max_aspect)
    if caption_weights and not hasattr(model, "encode_unweighted"):
        raise ValueError(
            f"caption_weights must be off for {model.name}, which takes brackets as text; (word:1.2) weighs words in a "
            "MODEL of ComfyUI alone"
        )
    encoder = _Encoder(model, cache_dir, dataset, variants, keep_tags, caption_weights)
    flips = (False, True) if flip else (False,)
    texts = encoder.captions(dataset, len(flips)) * variants
    more = sum(len(encoder.cutter.cuts(item)) - 1 for item in _clips(dataset))
    total = (len(dataset.items) + more) * len(flips) + texts
    tell = progress or (lambda done, total: None)
    nearest: dict[tuple[int, int], tuple[int, int]] = {}
    folders: Counter[tuple[str, int]] = Counter()
    try:
        for item in dataset.items:
            folders[item.path.parent.name, item.repeats] += 1
            shape = (item.width, item.height)
            size = nearest.setdefault(shape, nearest.get(shape) or nearest_bucket(*shape, sizes))
            for cut in encoder.cutter.cuts(item):
                for flipped in flips:
                    encoder.picture(_Picture(item, size, flipped, cut))
                    tell(encoder.done, total)
        return replace(
            encoder.dataset(lambda: tell(encoder.done, total)),
            notes=_notes(dataset, encoder.cutter),
            folders=tuple((*folder, count) for folder, count in sorted(folders.items())),
        )
    finally:
        encoder.close()


def _clips(dataset: ImageDataset) -> Iterator[ImageItem]:
    """Those of a dataset that are clips."""
    if isinstance(dataset.items, Items):
        yield from (dataset.items[i] for i in dataset.items.clips)
    else:
        yield from (item for item in dataset.items if item.clip is not None)


def _notes(dataset: ImageDataset, cutter: Cutter) -> tuple[str, ...]:
    """What is used of each clip, a line each."""
    lines = [cutter.note(item) for item in _clips(dataset)]
    return (*lines[:SHOWN], *([f"and {len(lines) - SHOWN} more clips"] if len(lines) > SHOWN else []))


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
    cutter = Cutter(model, dataset.cutting)
    out = []
    for i in spread(len(dataset.items), most):
        item = dataset.items[i]
        size = nearest_bucket(item.width, item.height, sizes)
        pictures, mask = _first_and_last(item, size, cutter)
        if item.mask is not None:
            mask = fitted_mask(item, _read(item.mask), *size)
        elif not dataset.alpha_masks:
            mask = None
        often = "" if item.repeats == 1 else f", {item.repeats} times"
        name = item.path.name if len(item.path.name) < 24 else f"...{item.path.name[-20:]}"
        controls = [control_pixels(control, size, model)[0] for control in item.controls]
        cut = cutter.cuts(item)[0]
        long = "" if cut is None else f"{cut.frames} frames "
        beside = "".join(f", {c.role}" for c in item.controls)
        title = f"{name}  {long}{size[0]}x{size[1]}{often}{beside}"
        out.append(Shown((*pictures, *controls), mask, title, item.caption))
    return out


def _first_and_last(
    item: ImageItem, size: tuple[int, int], cutter: Cutter
) -> tuple[list[Tensor], Tensor | None]:
    """The picture as it is trained on and its alpha channel, or the first and last frame of a clip's first sample."""
    cut = cutter.cuts(item)[0]
    if cut is None:
        pixels, mask = _still(item, b"", size)
        return [pixels], mask
    with closing(ClipReader(item.path, cutter.fps)) as reader:
        return list(_frames(reader, cut, size, (0, cut.frames - 1))), None


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
        self,
        model: ModelSource,
        cache_dir: Path | None,
        dataset: ImageDataset,
        variants: int,
        keep_tags: int,
        caption_weights: bool,
    ) -> None:
        self.model = model
        self.variants, self.keep_tags = variants, keep_tags
        self.alpha_masks = dataset.alpha_masks
        self.unweighted: Callable[[Sequence[str]], Mapping[str, Tensor]] | None = (
            None if caption_weights else getattr(model, "encode_unweighted", None)
        )
        self.cutter = Cutter(model, dataset.cutting)
        tell_rate: Callable[[float], Mapping[str, Tensor]] = getattr(model, "encode_rate", lambda fps: {})
        self.rate = tell_rate(self.cutter.fps) if self.cutter.cutting.fps and self.cutter.makes_clips else {}
        self.reader: tuple[Path, ClipReader] | None = None  # of the clip that is being encoded
        self.frames: tuple[Path, Cut, Tensor | Frames] | None = None  # of its sample, at its bucket's size
        self.whole = getattr(model, "whole_frames", 1 << 30)
        encoders = model.encoder_fingerprint
        self.base = [CACHE_VERSION, encoders, str(model.dtype)]
        self.cache = TensorCache(None if cache_dir is None else Path(cache_dir) / encoders)
        self.rows: dict[tuple[int, int, int], _Rows] = {}
        self.numbers: dict[str, int] = {}  # of the different captions
        self.written = Texts()
        self.seen: dict[
            int, _Picture
        ] = {}  # of captions that are encoded with pictures, a sample that has them
        self.keys = Keys()
        self.done = 0

    def captions(self, dataset: ImageDataset, flips: int) -> int:
        """How many captions there are to encode; where pictures are read beside them, at most."""
        if getattr(self.model, "reads_pictures", False) and dataset.paired:
            return len(dataset.items) * flips
        if isinstance(dataset.items, Items):
            return len(dataset.items.written)
        return len({item.caption for item in dataset.items})

    def picture(self, picture: _Picture) -> None:
        """Have a picture in the cache and among the rows of its bucket."""
        self.done += 1
        item = picture.item
        read = _Reads(item)
        contents = [read.digest, read.mask_digest, self.alpha_masks]
        if picture.cut is None:
            key = cache_key("picture", *self.base, contents, picture.size, picture.flipped)
        else:
            cut = [*picture.cut, self.cutter.fps]
            key = cache_key("clip", *self.base, contents, picture.size, picture.flipped, cut)
        others = self._variants(item.caption)[1:]
        if self.unweighted is not None and BRACKETS.search(item.caption):
            others = [*others, "without weights"]
        told = [[c.role, c.digest] for c in item.controls] + [[role, "own"] for role in self._own(picture)]
        if self.rate and picture.cut is not None:
            told.append(["frame rate", str(self.cutter.fps)])
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
            rate = {} if picture.cut is None else self.rate
            if not item.controls and not self._own(picture):
                return rate
            target = self._target(picture, None)
            given = [(c.role, control_pixels(c, picture.size, self.model)) for c in item.controls]
            given += [
                (role, target[:1] if role == "start frame" else target[-1:]) for role in self._own(picture)
            ]
            if picture.flipped:
                target, given = target.flip(-1), [(role, pixels.flip(-1)) for role, pixels in given]
            return {**taking(given, target), **rate}

        self.cache.ensure(own, make)
        return own

    def _own(self, picture: _Picture) -> list[Role]:
        """The roles that frames of a clip itself have: those that are wanted and that no control folder fills."""
        given = self.cutter.cutting.given
        if picture.cut is None or given == "nothing":
            return []
        roles: list[Role] = ["start frame"] if given == "start frame" else ["start frame", "end frame"]
        return [role for role in roles if role not in [c.role for c in picture.item.controls]]

    def _target(self, picture: _Picture, read: _Reads | None) -> Tensor | Frames:
        """The frames [F, 3, H, W] of a sample, not mirrored; those of a long clip are read as they are asked for."""
        item, cut = picture.item, picture.cut
        if cut is None:
            return _still(item, read.data() if read else b"", picture.size)[0][None]
        if self.reader is None or self.reader[0] != item.path:
            self.close_reader()
            self.reader = (item.path, ClipReader(item.path, self.cutter.fps))
        if self.frames is None or self.frames[:2] != (item.path, cut):
            self.frames = None  # let go of before the next are read
            passing = _Passing(self.reader[1], cut, picture.size)
            lazy = Frames((cut.frames, 3, *reversed(picture.size)), passing.read)
            self.frames = (item.path, cut, lazy if cut.frames > self.whole else lazy[:])
        return self.frames[2]

    def close_reader(self) -> None:
        """Let go of the clip that was read."""
        if self.reader is not None:
            self.reader[1].close()
        self.reader = self.frames = None

    def close(self) -> None:
        """Write the index of the cache, and let go of files."""
        self.close_reader()
        self.cache.close_index()

    def dataset(self, tell: Callable[[], None]) -> LatentDataset:
        """All pictures so far, with their captions, which are encoded now; `tell` is called after each."""
        layouts: set[Layout] = set()
        keys = Keys()
        for number, caption in enumerate(self.written):
            for text in self._variants(caption):
                keys.append(self._caption(text, layouts, self.seen.get(number)))
                self.done += 1
                tell()
        empty = self._caption("", layouts)
        captions = Captions(self.cache, keys, mold(sorted(layouts)))
        empty_cond, _ = alike([text_of(self.cache.read(empty)), text_of(captions.mold)])
        buckets = tuple(self._bucket(self.rows[size], captions) for size in sorted(self.rows))
        return LatentDataset(buckets, empty_cond, cache_key(*self.keys)[:16])

    def _put(self, picture: _Picture, key: str, shapes: Mapping[str, tuple[int, ...]], control: str) -> None:
        item = picture.item
        rows = self.rows.setdefault((*picture.size, picture.frames), _Rows(shapes["latent"]))
        rows.keys.append(key)
        rows.names.append(picture.name)
        seen = self._looks_at(picture)
        name = cache_key("seen", item.caption, *seen) if seen else item.caption
        rows.texts.append(self.numbers.setdefault(name, len(self.numbers)))
        if len(self.numbers) > len(self.written):
            if seen:
                self.seen[len(self.written)] = picture
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

    def _caption(self, text: str, layouts: set[Layout], picture: _Picture | None = None) -> str:
        """Have a caption in the cache; return its key, and put in what its conditioning is.

        Args:
            picture: its references are shown to the text encoder.
        """
        if picture is None and self.unweighted is not None and BRACKETS.search(text):
            encode = self.unweighted
            key = cache_key("caption without weights", *self.base, text)
            layouts.add(self.cache.ensure(key, lambda: encode([text])))
            return key
        if picture is None:
            key = cache_key("caption", *self.base, text)
            layouts.add(self.cache.ensure(key, lambda: self.model.encode_text([text])))
            return key
        key = cache_key("caption with pictures", *self.base, text, *self._looks_at(picture))
        layouts.add(self.cache.ensure(key, lambda: self._with_pictures(text, picture)))
        return key

    def _looks_at(self, picture: _Picture) -> list[object]:
        """What tells the pictures that a caption is encoded with from others; nothing: it is encoded by itself."""
        references = [c.digest for c in picture.item.controls if c.role == "reference"]
        if not references or not getattr(self.model, "reads_pictures", False):
            return []
        return [references, list(picture.size), picture.flipped]

    def _with_pictures(self, text: str, picture: _Picture) -> Mapping[str, Tensor]:
        given = [c for c in picture.item.controls if c.role == "reference"]
        pixels = [control_pixels(c, picture.size, self.model) for c in given]
        encode: Callable[[str, list[Tensor]], Mapping[str, Tensor]] = self.model.encode_text_beside  # type: ignore[attr-defined]
        return encode(text, [p.flip(-1) for p in pixels] if picture.flipped else pixels)

    def _encode(self, picture: _Picture, read: _Reads) -> dict[str, Tensor]:
        pixels: Tensor | Frames
        if picture.cut is None:
            pixels, mask = _still(picture.item, read.data(), picture.size)
        else:
            pixels, mask = self._target(picture, read), None
        if not self.alpha_masks:
            mask = None
        if read.mask_digest is not None:
            mask = fitted_mask(picture.item, read.mask(), *picture.size)
        if picture.flipped:
            pixels, mask = pixels.flip(-1), None if mask is None else mask.flip(-1)
        if isinstance(pixels, Tensor) and picture.cut is None:
            latent = self.model.encode_images(pixels[None])[0]
        else:
            encode_clip: Callable[[Tensor | Frames], Tensor] = self.model.encode_clip  # type: ignore[attr-defined]
            latent = encode_clip(pixels)
        if mask is None:
            return {"latent": latent}
        return {"latent": latent, "mask": adaptive_avg_pool2d(mask, (latent.shape[-2], latent.shape[-1]))}


class _Passing:
    """The frames of a cut as they pass by: a part of them is held, which the next part may begin in."""

    def __init__(self, reader: ClipReader, cut: Cut, size: tuple[int, int]) -> None:
        self._reader, self._cut, self._size = reader, cut, size
        self._held, self._first = torch.empty(0, 3, size[1], size[0]), 0

    def read(self, first: int, last: int) -> Tensor:
        """The frames [n, 3, H, W] from one number up to another.

        Raises:
            ValueError: as `ClipReader.frames`.
        """
        end = self._first + len(self._held)
        known = max(0, min(end, last) - first) if first >= self._first else 0
        out = torch.empty(last - first, *self._held.shape[1:])
        out[:known] = self._held[first - self._first :][:known]
        self._held, self._first = out, first
        if known < len(out):
            rest = Cut(self._cut.first + first + known, len(out) - known)
            for i, frame in enumerate(_frames(self._reader, rest, self._size), known):
                out[i] = frame
        return out


def _still(item: ImageItem, data: bytes, size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
    """A picture [3, H, W] and its alpha channel, or the first frame of a movie; `data`: its content if it is read."""
    if not item.path.name.lower().endswith(MOVIES):
        return fitted(item, data or _read(item.path), *size)
    with closing(resampled(item.path, 0)) as frames:
        return fitted_frame(next(frames), *size), None


def _frames(
    reader: ClipReader, cut: Cut, size: tuple[int, int], chosen: Collection[int] | None = None
) -> Iterator[Tensor]:
    """The frames [3, H, W] of a cut, all or those of these numbers."""
    for i, image in enumerate(reader.frames(cut)):
        if chosen is None or i in chosen:
            yield fitted_frame(image, *size)


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
        """Content of the picture; nothing of a movie, which is read frame by frame.

        Raises:
            ValueError: it is not what its folder was read with.
        """
        if not self._data and not self.item.path.name.lower().endswith(MOVIES):
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
