"""Write the trained networks and the VAE as a diffusers pipeline folder in fp16, and the demo's data."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from PIL import Image
from transformers import PreTrainedTokenizerFast

from .captions import BLOB, caption, read_names
from .networks import Networks
from .render import Pictures, on_background, save_png

WHITE = 0  # its place in BACKGROUNDS
FRAMES = 17
"""Of a clip, at 16 a second."""


def save_pipeline(
    networks: Networks, tokenizer: PreTrainedTokenizerFast, vae: AutoencoderTiny, folder: Path
) -> None:
    """Replace `folder` by the pipeline. Loading it needs text_encoder_3=None and tokenizer_3=None."""
    if folder.exists():
        shutil.rmtree(folder)
    pipeline: Any = StableDiffusion3Pipeline(
        transformer=networks.transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae,
        text_encoder=networks.text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=networks.text_encoder_2,
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(folder)
    name_tokenizers(folder)
    drop_derived_setting(folder)


def drop_derived_setting(folder: Path) -> None:
    """Take out what diffusers writes into the VAE's settings and then warns about on every load."""
    file = folder / "vae" / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config.pop("block_out_channels", None)
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def name_tokenizers(folder: Path) -> None:
    """Write the tokenizers' class as transformers 4 knows it; transformers 5 reads that too."""
    index = folder / "model_index.json"
    parts = json.loads(index.read_text(encoding="utf-8"))
    for part in ("tokenizer", "tokenizer_2"):
        parts[part] = ["transformers", "PreTrainedTokenizerFast"]
        file = folder / part / "tokenizer_config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    index.write_text(json.dumps(parts, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_data(pictures: Pictures, demo: Path) -> None:
    """Write the LoRA's captioned pictures, the unseen pictures and their captions."""
    for folder, names in (("data", read_names("blob_train.txt")), ("unseen", read_names("blob_unseen.txt"))):
        (demo / folder).mkdir(exist_ok=True)
        for name in names:
            (row,) = pictures.rows(BLOB, [name])
            pixels = on_background(pictures.rgba[[row]], torch.tensor([WHITE]))[0]
            save_png(pixels, demo / folder / f"{slug(name)}.png")
            if folder == "data":
                text = caption(name, BLOB, "white") + "\n"
                (demo / folder / f"{slug(name)}.txt").write_text(text, encoding="utf-8")
    save_grey(demo)
    save_clips(demo)
    lines = [caption(name, BLOB, "white") + "\n" for name in read_names("blob_unseen.txt")]
    (demo / "unseen_captions.txt").write_text("".join(lines), encoding="utf-8")


def save_grey(demo: Path) -> None:
    """Write the LoRA's pictures without their colours: what an edit begins with that gives them back."""
    (demo / "grey").mkdir(exist_ok=True)
    for file in sorted((demo / "data").glob("*.png")):
        with Image.open(file) as picture:
            picture.convert("L").save(demo / "grey" / file.name, optimize=True)


def save_clips(demo: Path) -> None:
    """Write a few of the LoRA's pictures as clips of a second: the face hops twice, and leans to the side."""
    folder, page, face = demo / "clips", 128, 96
    folder.mkdir(exist_ok=True)
    for file in sorted((demo / "data").glob("*.png"))[::6]:
        with Image.open(file) as picture:
            small = picture.convert("RGB").resize((face, face), Image.Resampling.LANCZOS)
        frames = []
        for i in range(FRAMES):
            swing = math.sin(2 * math.pi * i / (FRAMES - 1))
            leaning = small.rotate(20 * swing, Image.Resampling.BICUBIC, fillcolor="white")
            frames.append(Image.new("RGB", (page, page), "white"))
            frames[-1].paste(leaning, ((page - face) // 2, 28 - round(24 * abs(swing))))
        first, *others = frames
        clip = folder / f"{file.stem}.webp"
        first.save(clip, save_all=True, append_images=others, duration=1000 / 16, quality=70, method=6)
        text = file.with_suffix(".txt").read_text(encoding="utf-8")
        clip.with_suffix(".txt").write_text(f"a hopping {text}", encoding="utf-8")


def slug(name: str) -> str:
    """A name as a file's stem: "red apple" -> "red-apple"."""
    return name.replace(" ", "-")
