"""Draw the study's second set: 48 objects in a style that the shipped base has never been shown, with captions.

    python -m demo.make.objects [--work DIR] [--out benchmarks/objects]

The style is Fluent Emoji's shaded drawings. Its word is "toy", which the tokenizers know and no caption of the base
had. The base knows every one of the names in the styles noto and flat.
"""

import argparse
import json
import re
from pathlib import Path

import torch

from .captions import caption, read_names
from .export import WHITE
from .fetch import fetch
from .render import on_background, rasterize, save_png, slugs_by_name, squeeze

PACKAGE, STYLE = "fluent-emoji", "toy"
PARTS = {"taught": "toy_train.txt", "unseen": "toy_unseen.txt"}
OUT = Path(__file__).resolve().parents[2] / "benchmarks" / "objects"


def save_objects(packages: Path, out: Path) -> None:
    """Write `out/taught` and `out/unseen`: a picture on white and a caption for each name."""
    icons = json.loads((packages / PACKAGE / "icons.json").read_text(encoding="utf-8"))
    keys = {squeeze(key): key for key in reversed(icons["icons"])}
    slugs = slugs_by_name(packages)
    size = {side: icons[side] for side in ("width", "height")}
    for part, names in PARTS.items():
        folder = out / part
        folder.mkdir(parents=True, exist_ok=True)
        for name in read_names(names):
            icon = {"left": 0, "top": 0, **size, **icons["icons"][keys[squeeze(slugs[name])]]}
            pixels = on_background(rasterize(icon)[None], torch.tensor([WHITE]))[0]
            file = folder / re.sub("[^a-z0-9]+", "-", name)
            save_png(pixels, file.with_suffix(".png"))
            file.with_suffix(".txt").write_text(caption(name, STYLE, "white") + "\n", encoding="utf-8")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m demo.make.objects", description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / ".work", help="downloads")
    parser.add_argument("--out", type=Path, default=OUT, help="what is made")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    save_objects(fetch(options.work), options.out)


if __name__ == "__main__":
    main()
