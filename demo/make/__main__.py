"""Make the demo from nothing: fetch, render, train, export, train the style measure, draw the grids.

    python -m demo.make [--work DIR] [--out DIR] [--steps N]

Training goes on from its last checkpoint in the work folder. The result is a folder like this one, to be copied
over it when its figures are better.
"""

import argparse
import logging
from pathlib import Path

import torch
from torch import Tensor

from .captions import BACKGROUNDS
from .export import save_data, save_pipeline
from .fetch import fetch
from .latents import PatchCode, fit
from .measure import base_figures, lora_figures, report, style_figures
from .networks import build_tokenizer
from .render import Pictures, contact_sheet, on_background, render, save_png
from .sampling import draw, load_pipeline
from .style_training import examples, save_style, train_style
from .train import Recipe, train
from .vae import build_vae

DEMO = Path(__file__).resolve().parent.parent
SHOWN = """red apple, flat style, blue background
fox, noto style, yellow background
cat face, noto style, white background
dog face, flat style, green background
pizza, noto style, pink background
hamburger, noto style, black background
grinning face, noto style, red background
crying face, flat style, gray background
smiling face with sunglasses, flat style, blue background
frog, flat style, yellow background
unicorn, noto style, white background
sunflower, flat style, green background
avocado, noto style, pink background
rocket, flat style, black background
jack-o-lantern, noto style, gray background
penguin, flat style, gray background
soccer ball, noto style, blue background
tiger face, noto style, yellow background
strawberry, flat style, white background
panda, flat style, green background
face with tears of joy, noto style, pink background
ghost, flat style, black background
house, noto style, red background
clown face, flat style, gray background""".splitlines()


def representative_latents(code: PatchCode, pictures: Pictures) -> Tensor:
    """Latents [N, 16, 16, 16] of every second base drawing, for the decoder's ranges."""
    rows, _ = pictures.base_rows()
    colours = torch.arange(len(rows[::2])) % len(BACKGROUNDS)
    return code.encode(on_background(pictures.rgba[rows[::2]], colours))


def make(work: Path, out: Path, recipe: Recipe) -> None:
    """All stages, in order."""
    pictures = render(fetch(work), work)
    code = fit(pictures)
    networks = train(recipe, pictures, code, work)
    tokenizer = build_tokenizer(sorted(set(pictures.names)))
    vae = build_vae(code, representative_latents(code, pictures))
    save_pipeline(networks, tokenizer, vae, out / "model")
    save_data(pictures, out)
    pipeline = load_pipeline(out / "model")
    save_style(train_style(examples(pictures, pipeline), code), out / "style.safetensors")
    save_png(contact_sheet(draw(pipeline, SHOWN), 12), out / "samples.png")
    report(base_figures(pipeline, pictures))
    report(style_figures(pipeline, pictures))
    report(lora_figures(pipeline, pictures, out / "lora.png"))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m demo.make", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, default=DEMO / "make" / ".work", help="downloads and checkpoints"
    )
    parser.add_argument("--out", type=Path, default=DEMO / "make" / ".work" / "out", help="what is made")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="training steps of the base")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    make(args.work, args.out, Recipe(steps=args.steps))


if __name__ == "__main__":
    main()
