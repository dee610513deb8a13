"""One mood in docstrings: what a function gives is named, what it does is an order (see CONTRIBUTING.md)."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("host", "samplers", "training")
MODULES = [ROOT / "__main__.py", *sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]
GIVES = re.compile(r"(Returns?|Yields?|Tells? whether)\b")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_function_gives_is_named(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    said = [(node.name, ast.get_docstring(node) or "") for node in ast.walk(tree) if isinstance(node, kinds)]
    assert [name for name, text in said if GIVES.match(text)] == []
