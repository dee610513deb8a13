"""What the pieces of `reliability.py` look at, and the pictures that they train on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
LONGEST_LINE = 300
"""Characters of a message, without the word in front of it."""


def equal(a: Any, b: Any) -> bool:
    """Whether two states have the same tensors, bit for bit; NaN equals NaN."""
    return same_tensors(a.tensors, b.tensors)


def same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors are the same, bit for bit; NaN equals NaN."""
    return a.keys() == b.keys() and all(
        torch.equal(v.nan_to_num(-7), b[name].nan_to_num(-7)) for name, v in a.items()
    )


def same_data(a: Any, b: Any) -> bool:
    """Whether two datasets hold the same latents, names and conditioning, bit for bit."""
    pairs = list(zip(a.held().buckets, b.held().buckets, strict=True))
    return all(
        torch.equal(own.latents, other.latents)
        and list(own.names) == list(other.names)
        and all(torch.equal(v, other.cond[k]) for k, v in own.cond.items())
        for own, other in pairs
    )


def bad_line(text: str) -> str:
    """What is wrong with a message; "" if it is one printable line."""
    if not text.strip():
        return "an empty message"
    if not text.isprintable() or len(text) > LONGEST_LINE + 10:
        return f"no line: {text[:200]!r}"
    return ""


def some_pictures(folder: Path, n: int = 12) -> Path:
    """A new folder with the first `n` of the demo's pictures and their captions."""
    folder.mkdir(parents=True)
    for picture in sorted((ROOT / "demo" / "data").glob("*.png"))[:n]:
        shutil.copy2(picture, folder)
        shutil.copy2(picture.with_suffix(".txt"), folder)
    return folder
