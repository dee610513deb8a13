"""Pictures on disk: folders with captions, repeats and masks, and pictures fitted to a size.

A dataset folder holds pictures with captions beside them (``NAME.png``, ``NAME.txt``) and, if wanted,
masks (``NAME.mask.png``, white is trained). Subfolders named ``N_anything`` hold more of the same, each
picture N times an epoch.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""Pictures that are read."""
MASK = ".mask.png"
REPEATS = re.compile(r"(\d+)_.*")
EXIF_ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""


@dataclass(frozen=True)
class ImageItem:
    """One picture of a dataset."""

    path: Path
    caption: str
    width: int
    """Pixels, upright."""
    height: int
    repeats: int = 1
    """How often it is drawn in an epoch."""
    mask: Path | None = None


@dataclass(frozen=True)
class ImageDataset:
    """The readable pictures of a folder, in the order of their names, and one line for each file left out."""

    folder: Path
    items: tuple[ImageItem, ...]
    skipped: tuple[str, ...] = ()
    alpha_masks: bool = False
    """Pictures without a mask file are masked by their alpha channel."""

    def summary(self) -> str:
        """What was loaded and what was not, a line for each."""
        sizes = Counter(f"{item.width}x{item.height}" for item in self.items)
        common = ", ".join(f"{n} of {size}" for size, n in sizes.most_common(4))
        lines = [
            f"{len(self.items)} pictures, {sum(item.repeats for item in self.items)} samples an epoch",
            f"sizes: {common}" + (f" and {len(sizes) - 4} more sizes" if len(sizes) > 4 else ""),
        ]
        masked = sum(item.mask is not None for item in self.items)
        if masked or self.alpha_masks:
            lines.append(f"masks: {masked} from files" + (", the rest by alpha" if self.alpha_masks else ""))
        return "\n".join(lines + [f"skipped {line}" for line in self.skipped])


def read_image_folder(
    folder: str | Path, default_caption: str | None = None, trigger: str = "", alpha_masks: bool = False
) -> ImageDataset:
    """Find the pictures of `folder` and read their captions; every picture is decoded once to be sure of it.

    Args:
        folder: the dataset folder, see the module's text.
        default_caption: caption of pictures that have no caption file; None: each must have one.
        trigger: put before every caption that does not contain it.
        alpha_masks: train only where a picture is opaque, unless it has a mask file.

    Raises:
        ValueError: no such folder, no pictures in it, none that can be read, or a picture without a caption.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"dataset folder {folder}: it must exist, but there is no such folder")
    skipped = list(_strays(folder))
    items = []
    bare = []
    for path, repeats in _pictures(folder):
        name = path.relative_to(folder).as_posix()
        try:
            width, height = _upright_size(path)
        except Exception as err:  # Pillow raises anything from OSError to SyntaxError on a broken file
            skipped.append(f"{name}: it cannot be read as a picture ({_line(err)})")
            continue
        caption = _caption(path, default_caption, trigger)
        if caption is None:
            bare.append(name)
            continue
        mask = path.with_name(path.stem + MASK)
        items.append(ImageItem(path, caption, width, height, repeats, mask if mask.is_file() else None))
    if bare:
        raise ValueError(
            f"dataset folder {folder}: {bare[0]} must have a caption file {Path(bare[0]).stem}.txt "
            f"({len(bare)} pictures have none); write it, or set a default caption"
        )
    if not items:
        raise ValueError(
            f"dataset folder {folder}: it must hold pictures ({_kinds()}), but {_nothing(skipped)}"
        )
    return ImageDataset(folder, tuple(items), tuple(skipped), alpha_masks)


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
        raise ValueError(f"picture {item.path}: it cannot be read ({_line(err)})") from err
    alpha = None
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = _tensor(ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.LANCZOS))
    return pixels, None if alpha is None else _tensor(
        ImageOps.fit(alpha, (width, height), Image.Resampling.BOX)
    )


def fitted_mask(item: ImageItem, data: bytes, width: int, height: int) -> Tensor:
    """The mask file in `data` as [1, height, width] in [0, 1], fitted as its picture is.

    Raises:
        ValueError: `data` is not a picture.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            mask = opened.convert("L").resize((item.width, item.height), Image.Resampling.BOX)
    except Exception as err:  # as above
        raise ValueError(f"mask {item.mask}: it cannot be read ({_line(err)})") from err
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
        return round(abs(np.log(size[0] * height / (size[1] * width))), 6), -size[0] * size[1]

    return min(sizes, key=distance)


def _pictures(folder: Path) -> Iterator[tuple[Path, int]]:
    """Path and repeats of the pictures in `folder` and its ``N_name`` subfolders, sorted by name."""
    yield from ((path, 1) for path in sorted(folder.iterdir()) if _is_picture(path))
    for sub in sorted(path for path in folder.iterdir() if path.is_dir()):
        if match := REPEATS.fullmatch(sub.name):
            yield from ((path, int(match[1])) for path in sorted(sub.iterdir()) if _is_picture(path))


def _is_picture(path: Path) -> bool:
    name = path.name.lower()
    return path.is_file() and name.endswith(SUFFIXES) and not name.endswith(MASK) and not name.startswith(".")


def _strays(folder: Path) -> Iterator[str]:
    """A line for each caption without a picture and each subfolder that is not read."""
    for place in [folder, *(p for p in sorted(folder.iterdir()) if p.is_dir())]:
        pictures = {p.stem for p in place.iterdir() if _is_picture(p)}
        name = place.relative_to(folder).as_posix()
        if place != folder and not REPEATS.fullmatch(place.name):
            if pictures:
                yield f"{name}/: its pictures are not read; name it N_{name} to have them N times an epoch"
            continue
        for text in sorted(place.glob("*.txt")):
            if text.stem not in pictures:
                yield f"{text.relative_to(folder).as_posix()}: there is no picture of that name"


def _nothing(skipped: list[str]) -> str:
    return f"none is usable: {skipped[0]}" if skipped else "it has none"


def _kinds() -> str:
    return ", ".join(suffix[1:] for suffix in SUFFIXES)


def _caption(path: Path, default: str | None, trigger: str) -> str | None:
    file = path.with_suffix(".txt")
    if file.is_file():
        try:
            caption: str | None = " ".join(file.read_text(encoding="utf-8-sig").split())
        except UnicodeDecodeError as err:
            raise ValueError(f"caption {file}: it must be UTF-8 text, but is not") from err
    else:
        caption = default
    if caption is None or not trigger or trigger in caption:
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def _upright_size(path: Path) -> tuple[int, int]:
    """Decode the picture to be sure that it can be, and return its width and height as it is looked at."""
    stat = path.stat()
    return _checked_size(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1 << 16)
def _checked_size(path: Path, size: int, modified: int) -> tuple[int, int]:
    """`size` and `modified` (ns) make a changed file a new entry: a folder is read again before every run."""
    with Image.open(path) as image:
        width, height = image.size
        sideways = image.getexif().get(EXIF_ORIENTATION) in SIDEWAYS
        image.draft("RGB", (width // 8, height // 8))  # JPEG alone: an eighth of the size decodes far faster
        image.load()
    return (height, width) if sideways else (width, height)


def _eight_bit(image: Image.Image) -> Image.Image:
    """Pillow clips 16-bit grey at 255 instead of scaling it."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8))


def _tensor(image: Image.Image) -> Tensor:
    """Picture to [C, H, W] float32 in [0, 1]."""
    array = np.asarray(image, dtype=np.float32) / 255
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1).contiguous()


def _line(err: Exception) -> str:
    return str(err).strip().partition("\n")[0] or type(err).__name__
