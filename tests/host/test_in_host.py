"""What can only be checked in a host's own process, see `in_host.py`."""

from __future__ import annotations

import ast
import json

import pytest
from comfyui_process import HERE
from test_families import run_in_host

NAMES = [
    node.name
    for node in ast.parse((HERE / "in_host.py").read_text()).body
    if isinstance(node, ast.FunctionDef) and any(ast.unparse(d) == "check" for d in node.decorator_list)
]


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """The error of each check, None where there was none."""
    folder = tmp_path_factory.mktemp("in_host")
    run_in_host("in_host.py", folder, str(folder / "results.jsonl"), timeout=280)
    lines = (folder / "results.jsonl").read_text().splitlines()
    return {row["name"]: row["error"] for row in map(json.loads, lines)}


@pytest.mark.parametrize("name", NAMES)
def test_in_host(name: str, results: dict[str, str | None]) -> None:
    assert results[name] is None, results[name]
