"""README says which families train, as docs/families.md has it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("make_families", ROOT / "tools" / "make_families.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["README.md", "README.ja.md"])
def test_a_readme_is_as_the_command_writes_it(tool, name):
    page = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    readme = (ROOT / name).read_text(encoding="utf-8")
    assert tool.written(readme, page) == readme
    assert name != "README.md" or tool.MARKS[0] in readme


def test_a_family_that_no_longer_trains_leaves_the_readme(tool):
    found = tool.states((ROOT / "docs" / "families.md").read_text(encoding="utf-8"))
    assert "Krea 2" in tool.table(found)
    assert "Krea 2" not in tool.table(found | {"Krea 2": "fails: it was tried"})
    with pytest.raises(ValueError, match="must have a short name, got none for Newest"):
        tool.table(found | {"Newest": "trains"})
