"""Make this checkout importable as `rollout_trainer`, whatever its folder is called, installed or not.

Also: tests under tests/host and tests/browser get the marker of their folder, and what of them was
skipped is said in one line at the end of a run.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from comfyui_process import HOW_TO, comfyui

__all__ = ["comfyui"]  # the fixture, for tests/host and tests/browser

ROOT = Path(__file__).resolve().parent.parent
TIERS = ("host", "browser")
BROWSER = (
    "the browser tests also need a Chromium, /usr/bin/chromium or the one that CHROMIUM names, and playwright, which "
    "requirements-dev.txt brings"
)

# Before torch is loaded: models in tests are far too small for threads, see dev.py.
os.environ.setdefault("OMP_NUM_THREADS", "1")

spec = importlib.util.spec_from_file_location(
    "rollout_trainer", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
)
assert spec is not None
assert spec.loader is not None
package = importlib.util.module_from_spec(spec)
sys.modules["rollout_trainer"] = package
spec.loader.exec_module(package)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of single tests."""
    parser.addoption(
        "--write-families", action="store_true", help="write the table of docs/families.md (test_families.py)"
    )
    parser.addoption(
        "--family-rows", help="rows that family_probe.py wrote, instead of probing (test_families.py)"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test with its tier."""
    for item in items:
        tier = item.path.relative_to(ROOT / "tests").parts[0]
        if tier in TIERS:
            item.add_marker(tier)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests of each tier were skipped, and how to run them."""
    skipped = terminalreporter.stats.get("skipped", [])
    counts = {tier: sum(report.nodeid.startswith(f"tests/{tier}/") for report in skipped) for tier in TIERS}
    if any(counts.values()):
        told = ", ".join(f"{count} {tier} tests skipped" for tier, count in counts.items())
        terminalreporter.write_line(f"{told}; to run them, {HOW_TO}; {BROWSER}")
