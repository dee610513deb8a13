"""Pictures and clips on disk: what a dataset knows of them, and how they are fitted to a size."""

from __future__ import annotations

import hashlib
import io
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .clips import Clip, Cutting
from .columns import Texts
from .facts import Fact, line_of

EXIF_ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""
SHOWN = 20
"""Lines of what was left out that a summary shows."""


Role = Literal["reference", "start frame", "end frame", "inpaint"]
"""What a control is to its picture: what the model looks at, the first or last frame of a clip, or a mask of what is
painted anew (white)."""


@dataclass(frozen=True)
class Control:
    """A picture that belongs to a sample whatever its caption is."""

    path: Path
    role: Role
    width: int
    """Pixels, upright."""
    height: int
    digest: str


@dataclass(frozen=True)
class ImageItem:
    """One picture or clip of a dataset."""

    path: Path
    caption: str
    width: int
    """Pixels, upright."""
    height: int
    repeats: int = 1
    """How often it is drawn in an epoch."""
    mask: Path | None = None
    digest: str = ""
    """Of the file's content (sha256, hex), if it is known."""
    mask_digest: str = ""
    controls: tuple[Control, ...] = ()
    clip: Clip | None = None
    """What is known of it if it has more than one frame."""


class Items(Sequence[ImageItem]):
    """Pictures of a dataset, in some 70 bytes each and their names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.widths, self.heights, self.repeats = array("i"), array("i"), array("i")
        self.written = Texts()
        """The different captions."""
        self.captions = array("i")
        """Of each picture, the number of its caption."""
        self.masks = array("i")
        """Of each picture, the number of its mask; -1: it has none."""
        self._numbers: dict[str, int] = {}
        self._names, self._mask_names = Texts(), Texts()
        self._digests, self._mask_digests = bytearray(), bytearray()
        self._controls: dict[int, tuple[Control, ...]] = {}
        self.clips: dict[int, Clip] = {}
        """Of those that are clips."""

    def append(
        self,
        name: str,
        caption: str,
        fact: Fact,
        repeats: int,
        mask: tuple[str, str] | None,
        controls: tuple[Control, ...] = (),
        clip: Clip | None = None,
    ) -> None:
        """Put a picture at the end.

        Args:
            name: path within the folder.
            fact: as `look` says it.
            mask: path within the folder, and digest.
        """
        if controls:
            self._controls[len(self)] = controls
        if clip is not None:
            self.clips[len(self)] = clip
        self._names.append(name)
        if caption not in self._numbers:
            self._numbers[caption] = len(self.written)
            self.written.append(caption)
        self.captions.append(self._numbers[caption])
        self.widths.append(fact["width"])
        self.heights.append(fact["height"])
        self.repeats.append(repeats)
        self._digests += bytes.fromhex(fact["digest"])
        self.masks.append(-1 if mask is None else len(self._mask_names))
        if mask is not None:
            self._mask_names.append(mask[0])
            self._mask_digests += bytes.fromhex(mask[1])

    @property
    def paired(self) -> bool:
        """Whether any has controls."""
        return bool(self._controls)

    def close(self) -> Items:
        """Let go of what was needed to put pictures in."""
        self._numbers = {}
        return self

    @overload
    def __getitem__(self, i: int) -> ImageItem: ...
    @overload
    def __getitem__(self, i: slice) -> tuple[ImageItem, ...]: ...
    def __getitem__(self, i: int | slice) -> ImageItem | tuple[ImageItem, ...]:
        if isinstance(i, slice):
            return tuple(self[k] for k in range(*i.indices(len(self))))
        if i < 0:
            i += len(self)
        mask = self.masks[i]
        return ImageItem(
            self.folder / self._names[i],
            self.written[self.captions[i]],
            self.widths[i],
            self.heights[i],
            self.repeats[i],
            None if mask < 0 else self.folder / self._mask_names[mask],
            self._digests[32 * i : 32 * i + 32].hex(),
            "" if mask < 0 else self._mask_digests[32 * mask : 32 * mask + 32].hex(),
            self._controls.get(i, ()),
            self.clips.get(i),
        )

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True)
class ImageDataset:
    """The readable pictures and clips of a folder, in the order of their names, and one line for each file left out."""

    folder: Path
    items: Sequence[ImageItem]
    skipped: tuple[str, ...] = ()
    alpha_masks: bool = False
    """Pictures without a mask file are masked by their alpha channel."""
    cutting: Cutting = Cutting()
    """How samples are cut out of clips."""

    @property
    def paired(self) -> bool:
        """Whether any has controls."""
        if isinstance(self.items, Items):
            return self.items.paired
        return any(item.controls for item in self.items)

    @property
    def gives_frames(self) -> bool:
        """Whether an image-to-video model is given frames of any: from control folders, or a clip's own."""
        if self.cutting.given != "nothing" and self.clips:
            return True
        roles = {control.role for item in self.items for control in item.controls} if self.paired else set()
        return not roles.isdisjoint(("start frame", "end frame"))

    @property
    def clips(self) -> list[Clip]:
        """What is known of those that are clips."""
        if isinstance(self.items, Items):
            return list(self.items.clips.values())
        return [item.clip for item in self.items if item.clip is not None]

    def summary(self) -> str:
        """What was loaded and what was not, a line for each."""
        if isinstance(self.items, Items):
            shapes: Iterable[tuple[int, int]] = zip(self.items.widths, self.items.heights, strict=True)
            samples, masked = sum(self.items.repeats), sum(mask >= 0 for mask in self.items.masks)
        else:
            shapes = [(item.width, item.height) for item in self.items]
            samples = sum(item.repeats for item in self.items)
            masked = sum(item.mask is not None for item in self.items)
        sizes = Counter(shapes)
        common = ", ".join(f"{n} of {width}x{height}" for (width, height), n in sizes.most_common(4))
        clips = self.clips
        what = f"{len(self.items) - len(clips)} pictures" if len(self.items) > len(clips) else ""
        what = " and ".join(filter(None, (what, f"{len(clips)} clips" if clips else "")))
        lines = [
            f"{what}, {samples} samples an epoch",
            f"sizes: {common}" + (f" and {len(sizes) - 4} more sizes" if len(sizes) > 4 else ""),
        ]
        if clips:
            frames, seconds = [clip.frames for clip in clips], [clip.seconds for clip in clips]
            lines.append(
                f"clips: {min(frames)} to {max(frames)} frames, {min(seconds):.1f} to {max(seconds):.1f} s; models "
                "that make pictures take the first frame"
            )
        if masked or self.alpha_masks:
            lines.append(f"masks: {masked} from files" + (", the rest by alpha" if self.alpha_masks else ""))
        lines += [f"skipped {line}" for line in self.skipped[:SHOWN]]
        more = len(self.skipped) - SHOWN
        return "\n".join(lines + ([f"and {more} more were skipped"] if more > 0 else []))


def look(data: bytes) -> Fact:
    """Decode a picture to be sure that it can be: ``width`` and ``height`` upright, ``digest``, ``frames``.

    Raises:
        Exception: Pillow raises anything from OSError to SyntaxError on a broken file.
    """
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        frames = getattr(image, "n_frames", 1)
        sideways = image.getexif().get(EXIF_ORIENTATION) in SIDEWAYS
        image.draft("RGB", (width // 8, height // 8))  # JPEG alone: an eighth of the size decodes far faster
        image.load()
        if image.mode == "F":
            raise ValueError("its values are floating-point numbers; save it with 8 or 16 bits")
    width, height = (height, width) if sideways else (width, height)
    return {
        "width": width,
        "height": height,
        "digest": hashlib.sha256(data).hexdigest(),
        "frames": frames,
    }


def look_at_mask(data: bytes) -> Fact:
    """``digest`` of a mask, and whether it is ``empty``: black everywhere.

    Masks that older versions took for something else than what they show have another digest than their content's.

    Raises:
        Exception: as `look`.
    """
    with Image.open(io.BytesIO(data)) as opened:
        mask, once = shown(opened), opened.convert("L")
    digest = hashlib.sha256(data)
    if mask.tobytes() != once.tobytes():
        digest.update(b"as shown")
    return {"digest": digest.hexdigest(), "empty": not mask.getbbox()}


def shown(image: Image.Image) -> Image.Image:
    """A mask as [H, W] of 8 bits: how bright its brightest colour is, less where it is transparent."""
    image = _eight_bit(image)
    if image.mode in ("L", "1"):
        return image.convert("L")
    *colours, alpha = (np.asarray(band) for band in image.convert("RGBA").split())
    bright = np.max(colours, axis=0).astype(np.uint16)
    return Image.fromarray(((bright * alpha + 127) // 255).astype(np.uint8))


def fitted(item: ImageItem, data: bytes, width: int, height: int) -> tuple[Tensor, Tensor | None]:
    """The picture in `data`, resized and cropped about its centre to the size, and its alpha channel.

    Pixels [3, height, width] in [0, 1], transparent parts on white; alpha [1, height, width] or None.

    Raises:
        ValueError: `data` is not a picture.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            image = ImageOps.exif_transpose(_eight_bit(opened))
    except Exception as err:  # as above
        raise ValueError(f"picture {item.path}: it cannot be read ({line_of(err)})") from err
    alpha = None
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = _tensor(ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.LANCZOS))
    return pixels, None if alpha is None else _tensor(
        ImageOps.fit(alpha, (width, height), Image.Resampling.BOX)
    )


def fitted_frame(image: Image.Image, width: int, height: int) -> Tensor:
    """A frame of a clip, resized and cropped as a picture is: [3, height, width] in [0, 1]."""
    return _tensor(ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS))


def fitted_mask(item: ImageItem, data: bytes, width: int, height: int) -> Tensor:
    """The mask file in `data` as [1, height, width] in [0, 1], fitted as its picture is.

    Raises:
        ValueError: `data` is not a picture.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            mask = shown(opened).resize((item.width, item.height), Image.Resampling.BOX)
    except Exception as err:  # as above
        raise ValueError(f"mask {item.mask}: it cannot be read ({line_of(err)})") from err
    return _tensor(ImageOps.fit(mask, (width, height), Image.Resampling.BOX))


def bucket_sizes(resolution: int, step: int, max_aspect: float) -> list[tuple[int, int]]:
    """Sizes (width, height) of about `resolution`^2 pixels: the square, and others in multiples of `step`.

    None has more pixels than the square, nor a ratio of sides above `max_aspect`.
    """
    sizes = {(resolution, resolution)}
    for width in range(step, int(resolution * max_aspect**0.5) + step + 1, step):
        height = resolution**2 // width // step * step
        if height and max(width, height) <= max_aspect * min(width, height):
            sizes.update({(width, height), (height, width)})
    return sorted(sizes)


def nearest_bucket(width: int, height: int, sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """The size whose ratio of sides is nearest; of equals, the largest."""

    def distance(size: tuple[int, int]) -> tuple[float, int]:
        return round(abs(math.log(size[0] * height / (size[1] * width))), 6), -size[0] * size[1]

    return min(sizes, key=distance)


def _eight_bit(image: Image.Image) -> Image.Image:
    """Pillow clips 16-bit grey at 255 instead of scaling it."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8))


def _tensor(image: Image.Image) -> Tensor:
    """Picture to [C, H, W] float32 in [0, 1]."""
    array = np.asarray(image, dtype=np.float32) / 255
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1).contiguous()
