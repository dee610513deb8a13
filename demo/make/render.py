"""Render the drawings of the picture packages to premultiplied RGBA and put backgrounds behind them."""

import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
import torch
from PIL import Image
from torch import Tensor

from .captions import BACKGROUNDS, BLOB, BLOB_PACKAGE, STYLES, held_out_pairs, read_names

SIZE = 128
"""Pixels per side. The shipped VAE is right at this size only."""
OVERSAMPLING = 2
MARGIN = 0.06
"""Free border around a drawing, as a share of its longer side."""
UNDRAWABLE = {
    ("glossy", name)
    for name in (
        "baseball", "bus", "cloud", "duck", "globe showing europe-africa", "hot face",
        "pool 8 ball", "seedling", "skull", "sun", "umbrella", "wolf",
    )
}  # fmt: skip
"""Drawings on which the pinned resvg panics (its composite filter indexes out of bounds)."""
COLOURS = torch.tensor(list(BACKGROUNDS.values()), dtype=torch.float32) / 255  # [8, 3]


@dataclass(frozen=True)
class Pictures:
    """Drawings without a background, and what each shows.

    rgba: uint8 [N, 4, SIZE, SIZE], colour premultiplied by alpha
    names: what is drawn, N Unicode short names
    styles: who drew it, N style words
    """

    rgba: Tensor
    names: tuple[str, ...]
    styles: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: Sequence[int]) -> "Pictures":
        """The chosen rows."""
        chosen = tuple(self.names[i] for i in rows), tuple(self.styles[i] for i in rows)
        return Pictures(self.rgba[list(rows)], *chosen)

    def rows(self, style: str | None = None, names: Sequence[str] | None = None) -> list[int]:
        """Indices of the pictures in this style and with one of these names, in order."""
        wanted = None if names is None else set(names)
        return [
            i
            for i, (name, drawn) in enumerate(zip(self.names, self.styles, strict=True))
            if (style is None or drawn == style) and (wanted is None or name in wanted)
        ]

    def base_rows(self) -> tuple[list[int], list[int]]:
        """Indices the base model is trained on, and indices of the (name, style) pairs held out from it."""
        held = held_out_pairs()
        base = [i for i, style in enumerate(self.styles) if style != BLOB]
        out = [i for i in base if (self.names[i], self.styles[i]) in held]
        return sorted(set(base) - set(out)), out


def on_background(rgba: Tensor, background: Tensor) -> Tensor:
    """Premultiplied uint8 [B, 4, H, W] over the plain colours numbered by [B] -> [B, 3, H, W] in [0, 1]."""
    drawing = rgba.float() / 255
    colour = COLOURS[background][:, :, None, None]  # [B] -> [B, 3, 1, 1]
    return (drawing[:, :3] + (1 - drawing[:, 3:]) * colour).clamp(0, 1)


def render(packages: Path, work: Path) -> Pictures:
    """All drawings of the named concepts in the base styles, and every face the blob style has.

    Rendering takes some 40 s and is kept in `work/pictures.pt`.
    """
    cache = work / "pictures.pt"
    if not cache.exists():
        found = list(drawings(packages))
        rgba = torch.stack([rasterize(icon) for _, _, icon in found])
        torch.save({"rgba": rgba, "names": [f[0] for f in found], "styles": [f[1] for f in found]}, cache)
    kept = torch.load(cache)
    return Pictures(kept["rgba"], tuple(kept["names"]), tuple(kept["styles"]))


def drawings(packages: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(name, style word, icon) of every drawing wanted."""
    slugs = slugs_by_name(packages)
    for package, style in (*STYLES.items(), (BLOB_PACKAGE, BLOB)):
        wanted = read_names("blob_extra.txt") + read_names("blob_train.txt") + read_names("blob_unseen.txt")
        if style != BLOB:
            wanted = read_names("concepts.txt")
        icons = json.loads((packages / package / "icons.json").read_text(encoding="utf-8"))
        keys = {squeeze(key): key for key in reversed(icons["icons"])}
        for name in wanted:
            key = keys.get(squeeze(slugs[name]))
            if key is not None and (style, name) not in UNDRAWABLE:
                size = {side: icons[side] for side in ("width", "height")}
                yield name, style, {"left": 0, "top": 0, **size, **icons["icons"][key]}


def slugs_by_name(packages: Path) -> dict[str, str]:
    """Unicode short name in lower case -> slug, under which the picture packages file their drawings."""
    text = (packages / "unicode-emoji-json" / "data-by-emoji.json").read_text(encoding="utf-8")
    return {entry["name"].lower(): entry["slug"] for entry in json.loads(text).values()}


def squeeze(key: str) -> str:
    """Letters and digits alone: the packages disagree about everything else in a key."""
    return re.sub("[^a-z0-9]", "", key)


def rasterize(icon: dict[str, Any]) -> Tensor:
    """An icon of the Iconify JSON format -> premultiplied uint8 [4, SIZE, SIZE]."""
    pad = MARGIN * max(icon["width"], icon["height"])
    box = (icon["left"] - pad, icon["top"] - pad, icon["width"] + 2 * pad, icon["height"] + 2 * pad)
    side = SIZE * OVERSAMPLING
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{side}" height="{side}" viewBox="{box[0]} {box[1]} {box[2]} {box[3]}">{icon["body"]}</svg>'
    )
    image = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")
    rgba = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255  # [4, side, side]
    rgba[:3] *= rgba[3:]  # averaging is right for premultiplied colour only
    small = torch.nn.functional.avg_pool2d(rgba, OVERSAMPLING)
    return (small * 255).round().to(torch.uint8)


def save_png(pixels: Tensor, path: Path) -> None:
    """Write one [3, H, W] picture in [0, 1]."""
    array = (pixels.clamp(0, 1).permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    Image.fromarray(array).save(path, optimize=True)


def contact_sheet(pixels: Tensor, columns: int, gap: int = 2) -> Tensor:
    """[N, 3, H, W] -> one white [3, height, width] picture, filled row by row."""
    count, _, height, width = pixels.shape
    rows = -(-count // columns)
    sheet = torch.ones(3, rows * (height + gap), columns * (width + gap))
    for i, picture in enumerate(pixels):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[:, top : top + height, left : left + width] = picture
    return sheet
