"""Plots and sheets of pictures as arrays [H, W, 3], uint8. Nothing is kept between calls."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..objective.losses import COLUMNS

Picture = NDArray[np.uint8]
"""[H, W, 3]"""
Values = Sequence[float]

INK, FAINT, PAPER = "#1f2328", "#6e7781", "#ffffff"
COLOURS = ("#1f2328", "#0969da", "#1a7f37", "#cf222e", "#8250df")
"""Of the losses, in the order of `losses.COLUMNS`."""
LABELS = {"fc": "with FC (rolled)", "adr": "ADR (rolled)"}
"""Of the losses whose names do not say enough."""
EXPOSURE = {
    "energy": "energy distance to the forward process",
    "power": "power, own / forward",
    "prediction": "prediction norm, own / forward",
}
"""Measures of exposure bias that are drawn over sigma, with their titles."""
MAX_FRAMES = 9
"""Columns of a filmstrip; of a longer rollout, states in equal distances."""


def loss_plot(history: Mapping[str, Values], size: tuple[int, int] = (900, 500)) -> Picture:
    """Plot the losses of a run over its steps, smoothed, the raw values faint behind.

    Args:
        history: columns by name, one value per step; NaN where there is none. Its losses are drawn.
        size: width and height in pixels.
    """
    figure, axes = _figure(size)
    drawn = [
        _curve(axes, np.asarray(history[name], dtype=float), LABELS.get(name, name), colour)
        for name, colour in zip(COLUMNS, COLOURS, strict=True)
        if name in history and not _same_as_total(history, name)
    ]
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(0, max([2, *(len(values) for values in history.values())]))
    if any(drawn):
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        columns = min(sum(drawn), max(1, size[0] // 170))
        figure.legend(frameon=False, loc="outside upper center", ncols=columns, handlelength=1.4)
    else:
        axes.text(0.5, 0.5, "no finite loss yet", transform=axes.transAxes, ha="center", color=FAINT)
    return _render(figure)


def smoothed(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Exponential mean over about the last `window` values, without a bias at the start."""
    keep = 1 - 1 / max(window, 1)
    out = np.empty(len(values))
    total = weight = 0.0
    for i, value in enumerate(values):
        total, weight = keep * total + value, keep * weight + 1
        out[i] = total / weight
    return out


def drift_plot(sigmas: Values, drift: Values, floor: Values, size: tuple[int, int] = (700, 420)) -> Picture:
    """Plot paired drift over a rollout beside the floor that a perfect model has.

    Args:
        sigmas: noise levels from source to target; drawn from left to right.
        drift: relative distance to the clean interpolant at each.
        floor: what of it is no error of the model.
        size: width and height in pixels.
    """
    figure, axes = _figure(size)
    axes.plot(sigmas, drift, "o-", color="#cf222e", ms=4, label="own states against clean ones")
    axes.plot(sigmas, floor, "--", color=FAINT, label="of which a perfect model would have, at most")
    axes.fill_between(sigmas, 0, floor, color=FAINT, alpha=0.12, lw=0)
    axes.invert_xaxis()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("sigma (the rollout goes to the right)")
    axes.set_ylabel("drift  ||own - clean|| / ||clean||")
    axes.legend(frameon=False, loc="upper left")
    return _render(figure)


def difference_plot(
    rows: Mapping[str, tuple[Values, float, float, float]], label: str, width: int = 800
) -> Picture:
    """Plot differences between ways to train: every seed, the mean and its interval; left of 0 is better.

    Args:
        rows: by title, the values of the seeds, their mean, and the ends of its interval.
        label: what is measured.
        width: in pixels.
    """
    figure, axes = _figure((width, 130 + 50 * len(rows)))
    for y, (values, mean, low, high) in enumerate(rows.values()):
        colour = "#1a7f37" if high < 0 else "#cf222e" if low > 0 else FAINT
        axes.plot(values, [y] * len(values), "|", color=colour, ms=12, alpha=0.6)
        axes.errorbar(mean, y, xerr=[[mean - low], [high - mean]], fmt="o", color=colour, capsize=4)
    axes.axvline(0, color=INK, lw=1)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f"{label}: difference; left is better, across 0 is no difference seen")
    return _render(figure)


def exposure_plot(reports: Mapping[str, Mapping[str, Any]], size: tuple[int, int] = (1100, 680)) -> Picture:
    """Plot exposure bias of one or more models over sigma and, at a few noise levels, over radial frequency.

    Args:
        reports: by label, the columns of `exposure.ExposureBias.summary`.
        size: width and height in pixels.
    """
    figure = Figure(figsize=(size[0] / 100, size[1] / 100), dpi=100, layout="constrained", facecolor=PAPER)
    sigmas = next(iter(reports.values()))["sigma"]
    levels = sorted(
        {math.ceil((len(sigmas) - 1) * part / 4) for part in (1, 2, 3, 4)}
    )  # the last is the picture
    upper = [name for name in EXPOSURE for _ in range(4)]
    lower = [str(level) for level in levels for _ in range(12 // len(levels))]
    rows: list[Any] = [upper, lower]  # 12 columns each
    panels = figure.subplot_mosaic(rows)
    for (label, report), colour in zip(reports.items(), ("#0969da", "#cf222e", "#1a7f37"), strict=False):
        for name in EXPOSURE:
            values = report[name]
            panels[name].plot(sigmas[: len(values)], values, "o-", ms=3, color=colour, label=label)
        panels["energy"].plot(sigmas, report["energy_floor"], "--", color=FAINT, lw=1)
        for level in levels:
            panels[str(level)].plot(report["frequency"], report["spectrum"][level], "o-", ms=3, color=colour)
    for name, title in EXPOSURE.items():
        panels[name].set(title=title, xlabel="sigma")
        panels[name].invert_xaxis()
    _spectrum_axes([panels[str(level)] for level in levels], [sigmas[level] for level in levels])
    for name, axes in panels.items():
        axes.title.set_fontsize(10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        if name != "energy":
            axes.axhline(1, color=FAINT, lw=1, ls="--")
    panels["energy"].legend(frameon=False)
    return _render(figure)


def _spectrum_axes(panels: Sequence[Axes], sigmas: Values) -> None:
    """Axes of ratios over frequency, alike at all noise levels: an octave around 1 at least."""
    for axes, sigma in zip(panels, sigmas, strict=True):
        axes.set(title=f"spectrum at sigma {sigma:.2f}", xlabel="radial frequency, 1 is the finest")
        axes.set(xlim=(0, 1), yscale="log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    limits = [axes.get_ylim() for axes in panels]
    low, high = min(low for low, _ in limits), max(high for _, high in limits)
    for axes in panels:
        axes.set_ylim(min(low, 2**-0.5), max(high, 2**0.5))
    panels[0].set_ylabel("power, own / forward")


def filmstrip(
    own: NDArray[np.float32],
    clean: NDArray[np.float32],
    denoised: NDArray[np.float32],
    sigmas: Values,
    drift: Values,
    floor: Values,
) -> Picture:
    """Lay a rollout of one sample out in columns, source at the left, target at the right.

    Args:
        own, clean, denoised: [T + 1, H, W, 3] in [0, 1]: own states, clean interpolants, estimates of x0.
        sigmas, drift, floor: [T + 1] numbers under the columns.
    """
    count = len(sigmas)
    chosen = np.unique(np.linspace(0, count - 1, min(count, MAX_FRAMES)).round().astype(int))
    heads = [
        f"{'source ' if i == 0 else 'target ' if i == count - 1 else ''}\N{GREEK SMALL LETTER SIGMA} = {sigmas[i]:.3f}"
        for i in chosen
    ]
    feet = [
        f"drift {100 * drift[i]:.1f} %\nfloor \N{LESS-THAN OR EQUAL TO} {100 * floor[i]:.1f} %"
        for i in chosen
    ]
    rows = [states[chosen] for states in (own, clean, denoised)]
    return sheet(rows, ["own steps", "clean", "model's x0"], heads, feet)


def image_grid(
    rows: Sequence[NDArray[np.float32]], labels: Sequence[str], captions: Sequence[str] = ()
) -> Picture:
    """Lay pictures out in rows, with a label at the left of each and a caption above each column.

    Args:
        rows: each [N, H, W, 3] in [0, 1]; all of one size, N may differ.
        labels: one for each row.
        captions: one for each column, or none.

    Raises:
        ValueError: no rows, or labels that do not fit them.
    """
    return sheet(rows, labels, captions)


def sheet(
    rows: Sequence[NDArray[np.float32]],
    labels: Sequence[str],
    heads: Sequence[str] = (),
    feet: Sequence[str] = (),
) -> Picture:
    """Lay pictures out in a table with labels at the left and text above and below the columns.

    Raises:
        ValueError: no pictures, pictures of different sizes, or not one label for each row.
    """
    if not rows or len(labels) != len(rows) or len({row.shape[1:] for row in rows}) != 1:
        raise ValueError(
            f"rows must be pictures of one size with a label each, got {[row.shape for row in rows]} "
            f"and {len(labels)} labels"
        )
    height, width = rows[0].shape[1:3]
    scale = max(1, -(-96 // width))  # tiny pictures are enlarged, so that there is room for text
    height, width = height * scale, width * scale
    font = _font(max(11, min(20, width // 11)))
    gap = max(4, width // 32)
    tops, bottoms = _wrapped(heads, font, width), list(feet)
    left = max(_extent(label, font)[0] for label in labels) + 2 * gap
    top, bottom = (
        max((_extent(t, font)[1] for t in texts), default=0) + 2 * gap for texts in (tops, bottoms)
    )
    lefts = [left + x * (width + gap) for x in range(max(len(row) for row in rows))]
    uppers = [top + y * (height + gap) for y in range(len(rows))]
    end = uppers[-1] + height + gap
    canvas = Image.new("RGB", (lefts[-1] + width + gap, end + (bottom if feet else 0)), PAPER)
    draw = ImageDraw.Draw(canvas)
    for upper, row, label in zip(uppers, rows, labels, strict=True):
        draw.text((left - gap, upper + height // 2), label, INK, font, anchor="rm")
        for x, picture in zip(lefts, row, strict=False):
            canvas.paste(_picture(picture).resize((width, height), Image.Resampling.NEAREST), (x, upper))
    for texts, y, anchor in ((tops, top - gap, "md"), (bottoms, end + gap, "ma")):
        for x, text in zip(lefts, texts, strict=False):
            middle = (x + width // 2, y)
            draw.multiline_text(middle, text, INK, font, anchor=anchor, align="center", spacing=4)
    return np.asarray(canvas)


def _picture(values: NDArray[np.float32]) -> Image.Image:
    return Image.fromarray((np.clip(values, 0, 1) * 255).round().astype(np.uint8))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib ships it: the one font that is certain to be there."""
    file = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(str(file), size)


def _wrapped(texts: Sequence[str], font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Each text broken into at most four lines of about `width` pixels; its own breaks are kept."""
    letters = max(4, int(width / font.getlength("n")))
    return ["\n".join(line for part in text.split("\n") for line in _lines(part, letters)) for text in texts]


def _lines(text: str, letters: int) -> list[str]:
    return textwrap.wrap(text, letters, max_lines=4, placeholder=" ...")


def _extent(text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    """Width and height of a text of several lines, in pixels."""
    lines = text.split("\n")
    return int(max(font.getlength(line) for line in lines)), len(lines) * int(font.size + 4)


def _figure(size: tuple[int, int]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(size[0] / 100, size[1] / 100), dpi=100, layout="constrained", facecolor=PAPER)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def _render(figure: Figure) -> Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="rgba")
    width, height = (round(side * figure.dpi) for side in figure.get_size_inches())
    return np.frombuffer(buffer.getvalue(), np.uint8).reshape(height, width, 4)[..., :3].copy()


def _curve(axes: Axes, values: NDArray[np.float64], label: str, colour: str) -> bool:
    """Draw a loss column; False if nothing in it can be drawn on a logarithmic axis."""
    drawable = np.isfinite(values) & (values > 0)
    if not drawable.any():
        return False
    steps, values = np.flatnonzero(drawable) + 1, values[drawable]
    mean = smoothed(values, window=len(values) // 25)
    few = len(values) <= 30
    style = {"marker": "o", "ls": "", "ms": 3, "alpha": 0.5} if few else {"lw": 0.8, "alpha": 0.15}
    axes.plot(steps, values, color=colour, **style)
    axes.plot(steps, mean, color=colour, lw=1.8, label=f"{label}  {mean[-1]:.3g}")
    return True


def _same_as_total(history: Mapping[str, Values], name: str) -> bool:
    """Without rolled rows base is the total: one curve then."""
    if name != "base" or "total" not in history:
        return False
    return bool(np.array_equal(np.asarray(history[name]), np.asarray(history["total"]), equal_nan=True))
