"""Draw the thumbnails of templates that have no picture of their own: pictures, an arrow, and what it is.

``python tools/make_thumbnails.py [NAME ...]`` writes ``workflows/NAME.jpg``, of the size in which templates are shown.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
SIZE = (640, 400)
PAPER, INK, SHADE, ACCENT = "#f4efe6", "#2b2a33", "#d9d0c1", "#e4572e"
FOLDER, PAIRS, CLIPS = "a folder becomes a LoRA", "pairs become a LoRA", "clips become a LoRA"
THUMBNAILS = {
    "my-pictures-sdxl": ("My pictures", "SDXL", FOLDER),
    "my-pictures-flux": ("My pictures", "FLUX.1", FOLDER),
    "my-pictures-z-image": ("My pictures", "Z-Image", FOLDER),
    "my-pictures-app": ("My pictures", "as an app", FOLDER),
    "flux-lora": ("A new style", "FLUX.1", FOLDER),
    "sdxl-lora": ("A new style", "SDXL", FOLDER),
    "wan-image-lora": ("A new style", "Wan 2.1", FOLDER),
    "flux2-klein-lora": ("A new style", "FLUX.2 Klein", FOLDER),
    "z-image-lora": ("A new style", "Z-Image", FOLDER),
    "wan22-high-low-lora": ("Both models", "Wan 2.2 14B", FOLDER),
    "wan22-image-to-video-lora": ("Image to video", "Wan 2.2", CLIPS),
    "ltx2-clips-lora": ("A movement", "LTX-2", CLIPS),
    "flux-kontext-pairs-lora": ("An edit", "FLUX Kontext", PAIRS),
    "qwen-image-edit-pairs-lora": ("An edit", "Qwen Edit", PAIRS),
}
"""Title, what stands below it, and what is done, by template."""
FACES = (
    "beaming-face-with-smiling-eyes",
    "ghost",
    "nerd-face",
    "hugging-face",
    "partying-face",
    "smiling-face-with-halo",
)
TILE, GAP = 104, 12


def thumbnail(title: str, below: str, done: str) -> Image.Image:
    """Six of the demo's pictures on the left, of pairs the grey ones too; the words on the right."""
    picture = Image.new("RGB", SIZE, PAPER)
    draw = ImageDraw.Draw(picture)
    for i, face in enumerate(pairs() if done == PAIRS else faces()):
        x, y = 34 + (i % 2) * (TILE + GAP), 28 + (i // 2) * (TILE + GAP)
        draw.rounded_rectangle((x - 3, y - 3, x + TILE + 3, y + TILE + 3), 12, SHADE)
        picture.paste(face, (x, y))
    draw.line((276, 200, 322, 200), ACCENT, 8)
    draw.polygon(((318, 182), (318, 218), (346, 200)), ACCENT)
    draw.text((366, 150), title, INK, ImageFont.load_default(40))
    draw.text((368, 204), below, ACCENT, ImageFont.load_default(34))
    draw.text((368, 256), done, INK, ImageFont.load_default(19))
    return picture


def faces() -> list[Image.Image]:
    """Six of the demo's pictures, or the first ones where a name is not there."""
    files = sorted((ROOT / "demo" / "data").glob("*.png"))
    named = [file for file in files if file.stem in FACES]
    return [tile(file) for file in [*named, *(file for file in files if file not in named)][:6]]


def pairs() -> list[Image.Image]:
    """Three of the demo's pictures, each after its grey one."""
    grey = sorted((ROOT / "demo" / "grey").glob("*.png"))[:3]
    return [tile(file) for one in grey for file in (one, ROOT / "demo" / "data" / one.name)]


def tile(file: Path) -> Image.Image:
    """A picture at the size of a tile."""
    return Image.open(file).convert("RGB").resize((TILE, TILE), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    for name in sys.argv[1:] or THUMBNAILS:
        file = ROOT / "workflows" / f"{name}.jpg"
        thumbnail(*THUMBNAILS[name]).save(file, quality=90)
        print(f"{file.name}: {file.stat().st_size // 1024} kB")
