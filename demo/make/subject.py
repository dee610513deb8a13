"""Draw the study's subject: one robot of ours in other poses before other backgrounds, with captions.

    python -m demo.make.subject [--out benchmarks/subject]

Six are taught, 24 held out. The trigger is the word "toy", as that of the objects; the base knows the name "robot"
in the styles noto and flat. The drawing is this program's own: no package of pictures is needed.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from .captions import BACKGROUNDS, caption
from .render import on_background, rasterize, save_png

NAME, STYLE = "robot", "toy"
TAUGHT = 6
OUT = Path(__file__).resolve().parents[2] / "benchmarks" / "subject"
TEAL, DARK, ORANGE, CREAM = "#1f9e94", "#12595c", "#f2792b", "#fff3d6"


@dataclass(frozen=True)
class Pose:
    """How the robot stands; angles in degrees."""

    tilt: float
    left: float
    """The left arm, up from hanging down."""
    right: float
    gaze: tuple[float, float]
    mouth: float
    """From -1, a frown, to 1."""
    size: float


def pose(number: int) -> Pose:
    """The pose of a picture: always the same one."""
    generator = torch.Generator().manual_seed(100 + number)
    draw = torch.rand(7, generator=generator).tolist()
    gaze = 5 * (2 * draw[3] - 1), 4 * (2 * draw[4] - 1)
    return Pose(30 * draw[0] - 15, 150 * draw[1], 150 * draw[2], gaze, 2 * draw[5] - 1, 0.8 + 0.2 * draw[6])


def svg(own: Pose) -> str:
    """The robot's body in a square of 200, as Iconify has them: a round head with one large eye, a star, tracks."""
    eye = f'cx="{100 + own.gaze[0]}" cy="{62 + own.gaze[1]}"'
    star = "100,104 105,117 119,117 108,126 112,140 100,132 88,140 92,126 81,117 95,117"
    arm = '<rect x="-7" y="0" width="14" height="46" rx="7" fill="{}"/><circle cy="48" r="10" fill="{}"/>'
    parts = [
        f'<rect x="62" y="160" width="76" height="24" rx="12" fill="{DARK}"/>',
        *(f'<circle cx="{x}" cy="172" r="7" fill="{CREAM}"/>' for x in (76, 100, 124)),
        f'<g transform="translate(62 106) rotate({own.left})">{arm.format(DARK, ORANGE)}</g>',
        f'<g transform="translate(138 106) rotate({-own.right})">{arm.format(DARK, ORANGE)}</g>',
        f'<rect x="60" y="94" width="80" height="70" rx="16" fill="{TEAL}"/>',
        f'<polygon points="{star}" fill="{ORANGE}"/>',
        f'<path d="M100 26 V12" stroke="{DARK}" stroke-width="5"/><circle cx="100" cy="10" r="8" fill="{ORANGE}"/>',
        f'<circle cx="100" cy="62" r="40" fill="{TEAL}"/><circle cx="100" cy="60" r="23" fill="{CREAM}"/>',
        f'<circle {eye} r="11" fill="{DARK}"/>',
        f'<path d="M86 90 Q100 {90 + 9 * own.mouth} 114 90" stroke="{DARK}" stroke-width="4" fill="none"/>',
    ]
    place = f"translate(100 100) rotate({own.tilt}) scale({own.size}) translate(-100 -98)"
    return f'<g transform="{place}">{"".join(parts)}</g>'


def save_subject(out: Path) -> None:
    """Write `out/taught` and `out/unseen`: a picture and a caption for each pose."""
    colours = list(BACKGROUNDS)
    for number in range(TAUGHT + 24):
        part = "taught" if number < TAUGHT else "unseen"
        colour = (number if number < TAUGHT else number - TAUGHT) % len(colours)
        icon = {"left": 0, "top": 0, "width": 200, "height": 200, "body": svg(pose(number))}
        pixels = on_background(rasterize(icon)[None], torch.tensor([colour]))[0]
        file = out / part / f"{NAME}-{number:02d}"
        file.parent.mkdir(parents=True, exist_ok=True)
        save_png(pixels, file.with_suffix(".png"))
        file.with_suffix(".txt").write_text(caption(NAME, STYLE, colours[colour]) + "\n", encoding="utf-8")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m demo.make.subject", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT, help="what is made")
    save_subject(parser.parse_args().out)


if __name__ == "__main__":
    main()
