"""docs/architecture.md is true: its tree is the tree, its rooms are the rooms, and the paths in our texts exist."""

import re
from pathlib import Path

import pytest
from test_layers import LAYERS, ROOMS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
TEXTS = [
    "README.md",
    "README.ja.md",
    "CONTRIBUTING.md",
    *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")),
]
# Files that a path in a text may name although they are made, not committed.
MADE = {"out/demo", "report.json"}


def tree() -> list[str]:
    """Paths that the tree names, folders with a / at the end, in order."""
    lines = TEXT.partition("## The tree\n```\n")[2].partition("\n```")[0].splitlines()
    above: list[str] = []
    paths = []
    for line in lines:
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        above[depth:] = [name]
        paths.append("".join(above))
    return paths


def code() -> set[str]:
    """Paths of the files that the tree must name, one by one."""
    found = {path for layer in LAYERS for path in (ROOT / layer).rglob("*.py")} | set(ROOT.glob("*.py"))
    found |= {path for folder in ("tools", "benchmarks") for path in (ROOT / folder).glob("*.py")}
    found |= {path for suffix in ("js", "ts") for path in (ROOT / "web").glob(f"*.{suffix}")}
    # The line of a folder says what an __init__ without code of its own would.
    return {
        path.relative_to(ROOT).as_posix() for path in found if path.stat().st_size and not is_front_door(path)
    }


def is_front_door(path: Path) -> bool:
    """Whether a file is the __init__ of a folder whose line in the tree speaks for it."""
    return path.name == "__init__.py" and path.parent != ROOT


def test_the_tree_names_every_module():
    missing = sorted(code() - set(tree()))
    assert not missing, f"give each a line in the tree of docs/architecture.md: {missing}"


def test_every_name_in_the_tree_exists_once():
    paths = tree()
    assert len(paths) > 100
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert [path for path in paths if path.endswith("/") != (ROOT / path).is_dir()] == []
    assert len(set(paths)) == len(paths)


def test_every_line_of_the_tree_says_something():
    lines = TEXT.partition("## The tree\n```\n")[2].partition("\n```")[0].splitlines()
    bare = [line for line in lines if len(line.split()) < 2]
    assert [line.strip() for line in bare if line.strip() not in ("training/", "host/")] == []


@pytest.mark.parametrize("layer", list(ROOMS))
def test_the_tables_of_rooms_are_the_rooms(layer):
    table = TEXT.partition(f"| room of {layer}/ | stands on |\n|---|---|\n")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in table.splitlines()]
    assert {room: set(filter(None, below.split(", "))) for room, below in rows} == ROOMS[layer]
    order = list(ROOMS[layer])
    shown = [room for room, _ in rows]
    assert sorted(order, key=shown.index) == shown
    for room, below in rows:
        assert all(shown.index(name) < shown.index(room) for name in filter(None, below.split(", ")))


@pytest.mark.parametrize("text", TEXTS)
def test_paths_in_our_texts_exist(text):
    words = re.findall(r"`([^`\n]+)`|\]\(([^)#\s]+)", (ROOT / text).read_text(encoding="utf-8"))
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    named = [part for code_, link in words for part in (code_ or link).split()]
    named = [part.rstrip(",;:").partition("::")[0] for part in named]
    paths = [
        part for part in named if part.partition("/")[0] in folders and "/" in part and "://" not in part
    ]
    paths = [path for path in paths if not re.search(r"[<>*{}=]|\.\.\.", path) and path not in MADE]
    missing = [
        path for path in paths if not any((base / path).exists() for base in (ROOT, (ROOT / text).parent))
    ]
    assert [path for path in missing if not path.startswith("out/")] == []


def test_what_is_to_be_called_exists():
    """Names in backticks that look like our functions, classes and registries are written somewhere in the code."""
    names = set(re.findall(r"`([A-Za-z_]\w+(?:\.\w+)?)`", TEXT.partition("## The way of a latent")[2]))
    sources = "\n".join(
        (ROOT / path).read_text(encoding="utf-8") for path in (*code(), "tests/unit/test_layers.py")
    )
    ours = {name.rpartition(".")[2] for name in names if re.search(r"[A-Z_]", name)}
    assert {name for name in ours if not re.search(rf"\b{re.escape(name)}\b", sources)} == set()
