"""Every family of denoisers that a host knows, as a tiny random model: what trains, and what is refused in one line.

`family_probe.py` trains each in the host's own interpreter; here its rows are judged. The table of docs/families.md is
printed from them:

    COMFYUI_PATH=... pytest tests/host/test_families.py --write-families
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from comfyui_process import HERE, ROOT, find_installation
from family_table import MARKS, NAMES, REFUSED, table

Row = dict[str, Any]
TIMEOUT = 3600.0
DOCS = ROOT / "docs" / "families.md"
NEWEST = 50
"""Families that train in the newest host that was tried, at least."""


def run_in_host(program: str, folder: Path, *args: str, timeout: float = TIMEOUT) -> None:
    """Run a program of this folder with the host's interpreter, the pack beside it under its own name."""
    found = find_installation()
    if found is None:
        pytest.skip("no ComfyUI")
    (folder / "rollout_trainer").symlink_to(ROOT)
    environment = os.environ | {
        "COMFYUI_PATH": str(found.folder),
        "PACK_PARENT": str(folder),
        "PYTHONPATH": str(HERE / "stubs"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [str(found.python), str(HERE / program), *args],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Row]:
    """The probe's row of each family; with --family-rows, those that an earlier probe wrote."""
    written = request.config.getoption("--family-rows")
    folder = tmp_path_factory.mktemp("families")
    file = Path(written) if written else folder / "rows.jsonl"
    if not written:
        run_in_host("family_probe.py", folder, str(file))
    found = [json.loads(line) for line in file.read_text().splitlines()]
    return {row["family"]: row for row in found}


@pytest.fixture(params=NAMES)
def row(request: pytest.FixtureRequest, rows: dict[str, Row]) -> Row:
    """One family's row."""
    found = rows[request.param]
    if "unknown" in found:
        pytest.skip(f"this ComfyUI does not know {request.param}: {found['unknown']}")
    return found


@pytest.mark.timeout(TIMEOUT)
def test_a_family_trains_or_is_refused_in_one_line(row: Row) -> None:
    name = row["family"]
    if name in REFUSED:
        assert REFUSED[name] in row["refused"]
        assert row["refused"].startswith("ValueError")
        return
    assert "refused" not in row, row["refused"]
    for key in ("plain", "checkpointed"):
        assert isinstance(row[key], list), f"{key}: {row[key]}"
        first, last = row[key]
        assert last < first
    # The gradients differ by rounding, and Adam makes steps of learning-rate size of gradients near zero.
    assert row["checkpointing_differs"] <= 0.3 * row["way"]
    assert row["held"], "a given frame was not clean in a call of the network"


@pytest.mark.timeout(TIMEOUT)
def test_its_lora_acts_in_the_stock_loader_as_it_was_trained(row: Row) -> None:
    if row["family"] in REFUSED:
        return
    assert row["not_loaded"] == 0
    assert row["difference"] <= 1e-5 * max(1.0, row["size"])
    assert row["effect"] > 1e3 * row["difference"]


@pytest.mark.timeout(TIMEOUT)
def test_the_model_is_bit_for_bit_as_before(row: Row) -> None:
    if row["family"] in REFUSED:
        return
    assert row["bits"]
    assert row["bits_after_sampling"]


@pytest.mark.timeout(TIMEOUT)
def test_enough_families_train_and_the_page_says_which(
    rows: dict[str, Row], request: pytest.FixtureRequest
) -> None:
    known = [row for row in rows.values() if "unknown" not in row]
    if len(known) < NEWEST:
        pytest.skip(f"this ComfyUI knows {len(known)} of the families")
    trained = [row for row in known if isinstance(row.get("plain"), list)]
    assert len(trained) >= NEWEST
    begin, end = MARKS
    before, rest = DOCS.read_text(encoding="utf-8").split(begin)
    old, after = rest.split(end)
    if request.config.getoption("--write-families"):
        DOCS.write_text(f"{before}{begin}\n{table(rows)}\n{end}{after}", encoding="utf-8")
        return
    for page in ("README.md", "README.ja.md"):
        assert f"{len(trained)} " in (ROOT / page).read_text(encoding="utf-8"), (
            f"{page} must name {len(trained)}"
        )
    assert old.strip() == table(rows), "docs/families.md must say what trains; run with --write-families"
