"""What can only be checked in a host's own process, see `in_host.py`."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from comfyui_process import HERE
from test_families import run_in_host

NAMES = [
    node.name
    for node in ast.parse((HERE / "in_host.py").read_text()).body
    if isinstance(node, ast.FunctionDef) and any(ast.unparse(d) == "check" for d in node.decorator_list)
]


def checked(folder: Path, *part: str) -> dict[str, str | None]:
    """The error of each check, None where there was none."""
    run_in_host("in_host.py", folder, str(folder / "results.jsonl"), *part, timeout=280)
    lines = (folder / "results.jsonl").read_text().splitlines()
    return {row["name"]: row["error"] for row in map(json.loads, lines)}


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """Of all checks but those of compiled blocks."""
    return checked(tmp_path_factory.mktemp("in_host"))


@pytest.fixture(scope="session")
def of_compiled_blocks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """Of those."""
    return checked(tmp_path_factory.mktemp("compiled"), "compiled")


@pytest.mark.parametrize("name", [name for name in NAMES if "compiled" in name])
def test_compiled_blocks_in_host(name: str, of_compiled_blocks: dict[str, str | None]) -> None:
    assert of_compiled_blocks[name] is None, of_compiled_blocks[name]


@pytest.mark.parametrize("name", [name for name in NAMES if "compiled" not in name])
def test_in_host(name: str, results: dict[str, str | None]) -> None:
    assert results[name] is None, results[name]
