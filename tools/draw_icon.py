"""Draw the pack's icon and banner for ComfyUI's registry: ``python tools/draw_icon.py`` writes docs/{icon,banner}.png.

A rollout: steps of the model's own (amber) beside the clean path (blue), from noise to a picture.
"""

from __future__ import annotations

import math
import random
from pathlib import Path

import resvg_py
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

OUT = Path(__file__).resolve().parents[1] / "docs"
ICON, BANNER = (400, 400), (1260, 540)
"""Pixels: the registry takes square icons up to 400, and banners of 21 to 9."""
TITLE, LINE = "Rollout Trainer", "LoRAs that learn from their own steps"
STEPS = 5
BLUE, AMBER, PALE = "#6fb7ff", "#ffb74d", "#e8eefc"
DEFINITIONS = """<defs>
  <linearGradient id="night" x1="0" y1="0" x2="1" y2="1">
    <stop offset="0" stop-color="#2a3350"/><stop offset="1" stop-color="#12151f"/>
  </linearGradient>
  <radialGradient id="glow">
    <stop offset="0" stop-color="#ffd28a" stop-opacity="0.85"/><stop offset="1" stop-color="#ffb74d" stop-opacity="0"/>
  </radialGradient>
  <linearGradient id="sky" x1="0" y1="0" x2="0" y2="1">
    <stop offset="0" stop-color="#8fd0ff"/><stop offset="1" stop-color="#fff0cf"/>
  </linearGradient>
</defs>"""


def clean(t: float) -> tuple[float, float]:
    """The clean path in a square of side 1: where it is at `t`, from 0 (noise) to 1 (picture)."""
    angle = math.pi * (0.98 - 0.92 * t)
    return 0.47 + 0.31 * math.cos(angle), 0.70 - 0.36 * math.sin(angle) + 0.02 * t


def own(step: int) -> tuple[float, float]:
    """The state after `step` own steps: it drifts outwards, and training brings it back."""
    t = step / STEPS
    x, y = clean(t)
    drift = 0.105 * math.sin(math.pi * min(1.0, 1.1 * t)) if step < STEPS else 0.0
    away = math.atan2(y - 0.70, x - 0.47)
    return x + drift * math.cos(away), y + drift * math.sin(away)


def noise(x: float, y: float, spread: float, count: int, draw: random.Random) -> str:
    """`count` grey dots around a place."""
    dots = []
    for _ in range(count):
        a, r = draw.uniform(0, 2 * math.pi), spread * math.sqrt(draw.random())
        shade = draw.randint(90, 235)
        place = f'cx="{x + r * math.cos(a):.4f}" cy="{y + r * math.sin(a):.4f}"'
        dots.append(
            f'<circle {place} r="{draw.uniform(0.004, 0.009):.4f}" fill="rgb({shade},{shade},{shade + 20})"/>'
        )
    return "".join(dots)


def picture(x: float, y: float, side: float) -> str:
    """A small picture: a sun over hills, in a frame."""
    left, top, half = x - side / 2, y - side / 2, side / 2
    box = f'x="{left}" y="{top}" width="{side}" height="{side}"'
    hills = (
        f"M{left} {y + 0.16 * side} q{half / 2} {-0.30 * side} {half} {-0.02 * side} "
        f"t{half} {-0.06 * side} V{top + side} H{left} Z"
    )
    return (
        f'<circle cx="{x}" cy="{y}" r="{0.95 * side}" fill="url(#glow)"/>'
        f'<clipPath id="frame"><rect {box} rx="{0.16 * side}"/></clipPath>'
        f'<g clip-path="url(#frame)"><rect {box} fill="url(#sky)"/>'
        f'<circle cx="{x + 0.16 * side}" cy="{y - 0.16 * side}" r="{0.15 * side}" fill="{AMBER}"/>'
        f'<path d="{hills}" fill="#3f7d6b"/></g>'
        f'<rect {box} rx="{0.16 * side}" fill="none" '
        f'stroke="{PALE}" stroke-width="{0.05 * side}"/>'
    )


def mark() -> str:
    """The mark, in a square of side 1."""
    draw = random.Random(7)
    path = " ".join(
        f"{'L' if i else 'M'}{x:.4f} {y:.4f}" for i, (x, y) in enumerate(clean(i / 60) for i in range(61))
    )
    states = [own(step) for step in range(STEPS + 1)]
    steps = " ".join(f"{'L' if i else 'M'}{x:.4f} {y:.4f}" for i, (x, y) in enumerate(states))
    start, end = states[0], states[-1]
    dots = "".join(
        f'<circle cx="{x:.4f}" cy="{y:.4f}" r="0.026" fill="{AMBER}" stroke="#12151f" stroke-width="0.008"/>'
        for x, y in states[1:-1]
    )
    return (
        f'<path d="{path}" fill="none" stroke="{BLUE}" stroke-width="0.018" stroke-dasharray="0.004 0.030" '
        'stroke-linecap="round"/>'
        f'<path d="{steps}" fill="none" stroke="{AMBER}" stroke-width="0.020" stroke-linejoin="round"/>'
        f"{noise(*start, 0.115, 210, draw)}{dots}{picture(*end, 0.27)}"
    )


def lettering(text: str, x: float, y: float, size: float, colour: str, weight: str) -> str:
    """`text` as a path, so that every machine draws the same letters."""
    font = FontProperties(family="DejaVu Sans", weight=weight)
    shapes = TextPath((0, 0), text, size=size, prop=font)
    letters = {1: "M", 2: "L", 3: "Q", 4: "C", 79: "Z"}
    parts = [
        letters[int(code)] + ("" if code == 79 else " ".join(f"{v:.2f}" for v in points))
        for points, code in shapes.iter_segments(curves=True, simplify=False)
    ]
    return f'<path transform="translate({x} {y}) scale(1 -1)" d="{" ".join(parts)}" fill="{colour}"/>'


def svg(size: tuple[int, int], content: str, corner: float) -> str:
    """A whole drawing on the night sky."""
    width, height = size
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        f'{DEFINITIONS}<rect width="{width}" height="{height}" rx="{corner}" fill="url(#night)"/>{content}</svg>'
    )


def icon() -> str:
    """The mark alone."""
    return svg(ICON, f'<g transform="scale({ICON[0]})">{mark()}</g>', 84)


def banner() -> str:
    """The mark, the name, and what it does."""
    shapes = f'<g transform="translate(30 20) scale({BANNER[1] - 40})">{mark()}</g>'
    words = lettering(TITLE, 560, 268, 76, PALE, "bold") + lettering(LINE, 563, 334, 30, BLUE, "normal")
    return svg(BANNER, shapes + words, 0)


def main() -> None:
    """Write both."""
    for name, drawing in (("icon", icon()), ("banner", banner())):
        (OUT / f"{name}.png").write_bytes(bytes(resvg_py.svg_to_bytes(svg_string=drawing)))


if __name__ == "__main__":
    main()
