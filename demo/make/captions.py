"""What the pictures are called: names, styles, backgrounds, and who is held out."""

from pathlib import Path

NAMES = Path(__file__).parent / "names"

STYLES = {
    "noto": "noto",
    "fluent-emoji-flat": "flat",
    "fluent-emoji": "glossy",
    "twemoji": "twemoji",
    "fxemoji": "fox",
}
"""Picture package -> the word for its style in a caption: the styles the base model is taught."""

BLOB_PACKAGE, BLOB = "noto-v1", "blob"
"""The style kept from the base model, for a LoRA to teach."""

BACKGROUNDS = {
    "white": (255, 255, 255),
    "black": (25, 25, 25),
    "red": (220, 60, 60),
    "green": (80, 170, 90),
    "blue": (70, 120, 210),
    "yellow": (250, 215, 90),
    "pink": (245, 170, 190),
    "gray": (160, 160, 160),
}
"""Colour word -> sRGB, 0..255: the plain backgrounds we put behind the drawings."""


def caption(name: str, style: str | None = None, background: str | None = None) -> str:
    """ "red apple, flat style, blue background"; a part that is None is left out."""
    parts = [name]
    if style is not None:
        parts.append(f"{style} style")
    if background is not None:
        parts.append(f"{background} background")
    return ", ".join(parts)


def read_names(file: str) -> list[str]:
    """The lines of one of the lists in `names/`."""
    return (NAMES / file).read_text(encoding="utf-8").splitlines()


def held_out_pairs() -> set[tuple[str, str]]:
    """(name, style) pairs the base is never trained on, though it knows the name in other styles."""
    pairs = set()
    for line in read_names("held_out.txt"):
        name, _, style = line.rpartition(", ")
        pairs.add((name, style.removesuffix(" style")))
    return pairs
