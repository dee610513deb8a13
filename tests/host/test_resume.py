"""Two stages are the whole run, bit for bit, on the host's MODEL with everything on: dropout of the adapter above all.

`resume_probe.py` trains in the host's own interpreter; here its rows are judged. Every family takes part, the kinds of
adapter in turn; four families of different make with every kind.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from family_table import NAMES, REFUSED
from test_families import run_in_host

Row = dict[str, Any]
TIMEOUT = 3600.0
KINDS = ("lora", "dora", "loha", "lokr")
PAIRS = [(family, kind) for family in ("sd15", "sd3", "flux_dev", "wan21_t2v") for kind in KINDS]
IN_TURN = [(family, KINDS[i % 4]) for i, family in enumerate(NAMES) if family not in REFUSED]
STEPS, FEW = 5, 2
"""In each of the two stages: of `PAIRS`, of `IN_TURN`."""


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, int], Row]:
    """The rows of all pairs, from one process; those that an earlier probe wrote if RESUME_ROWS names their file."""
    asked = [(*pair, STEPS) for pair in PAIRS] + [(*pair, FEW) for pair in IN_TURN]
    folder, written = tmp_path_factory.mktemp("resumed"), os.environ.get("RESUME_ROWS")
    file = Path(written) if written else folder / "rows.jsonl"
    if not written:
        names = ["/".join(map(str, own)) for own in asked]
        run_in_host("resume_probe.py", folder, str(file), *names, timeout=TIMEOUT)
    return dict(zip(asked, map(json.loads, file.read_text().splitlines()), strict=True))


def check(row: Row) -> None:
    """The two stages were the whole run."""
    if "unknown" in row:
        pytest.skip(f"this ComfyUI does not know {row['family']}: {row['unknown']}")
    assert "refused" not in row, row["refused"]
    assert row["finite"]
    assert row["differing"] == []


@pytest.mark.timeout(TIMEOUT)
@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
def test_a_kind_of_adapter(pair: tuple[str, str], rows: dict[tuple[str, str, int], Row]) -> None:
    check(rows[(*pair, STEPS)])


@pytest.mark.timeout(TIMEOUT)
@pytest.mark.parametrize("pair", IN_TURN, ids="/".join)
def test_a_family(pair: tuple[str, str], rows: dict[tuple[str, str, int], Row]) -> None:
    check(rows[(*pair, FEW)])
