"""README's table of cards and models is what `benchmarks/memory.py` makes of docs/memory.json."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SHOWN = (
    "as it is",
    "checkpointing",
    "checkpointing, float8",
    "checkpointing, nf4",
    "checkpointing, swap",
)
ROW = re.compile(r"^\|([^|]*)\| (512|1024) \| (.+) \|$", re.MULTILINE)


@pytest.fixture
def memory(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import memory

    yield memory
    for name in ("memory", "real_models"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("file", "frame", "cannot"), [("README.md", "1 frame", "no"), ("README.ja.md", "1 フレーム", "不可")]
)
def test_figures_are_those_that_are_stored(memory, file, frame, cannot):
    model, seen = "", set()
    for name, pixels, figures in ROW.findall((ROOT / file).read_text(encoding="utf-8")):
        model = name.strip().replace(frame, "1 frame") or model
        found = dict(
            memory.ways(*memory.known(memory.MODELS[model], int(pixels)), memory.MODELS[model].swaps)
        )
        cells = [found[way] for way in SHOWN]
        told = [cannot if peak is None else f"{peak / memory.GIB:.1f}" for peak in cells]
        assert figures.split(" | ") == told, (model, pixels)
        seen.add((model, pixels))
    assert seen == {(model, pixels) for model in memory.MODELS for pixels in ("512", "1024")}
