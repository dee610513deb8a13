"""Who may import whom: nodes -> training -> samplers, host at the side, ComfyUI behind host alone.

The rules are in CONTRIBUTING.md. The check reads the sources, so an import inside a function or under
TYPE_CHECKING counts like any other.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Room -> the rooms that it may import from, besides itself.
LAYERS = {
    "samplers": set(),
    "training": {"samplers"},
    "host": set(),
    "nodes": {"samplers", "training", "host"},
}
# Modules of ComfyUI; `nodes` is one of them, and with an absolute import it would be theirs, not ours.
COMFYUI = {
    "comfy", "comfy_api", "comfy_api_nodes", "comfy_config", "comfy_execution", "comfy_extras", "execution",
    "folder_paths", "latent_preview", "main", "node_helpers", "nodes", "server",
}  # fmt: skip
THIRD_PARTY = {"samplers": {"torch"}}  # rooms that may only import these beside the standard library


def imported(source: str, folder: str) -> Iterator[tuple[int, str, bool]]:
    """Yield (line, dotted name, whether it is ours) of every import in a module that lies directly in `folder`.

    Names of ours are given from the pack's root: `from ..samplers import x` is `samplers.x`. A relative
    import that leaves the pack has the name "".
    """
    package = list(filter(None, folder.split(".")))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module or "", False
        elif isinstance(node, ast.ImportFrom):
            above = len(package) - (node.level - 1)  # how many names of `package` the import starts from
            base = [*package[: max(above, 0)], *filter(None, [node.module])]
            for alias in node.names:
                yield node.lineno, "" if above < 0 else ".".join([*base, alias.name]), True
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = ast.unparse(node.func).rpartition(".")[2]
            if function in {"import_module", "__import__"}:
                yield node.lineno, str(node.args[0].value), False


def breaches(source: str, folder: str) -> list[str]:
    """Return one line for every import in a module of `folder` ("" is the root) that the rules forbid."""
    found, room = [], folder.partition(".")[0]
    for line, name, ours in imported(source, folder):
        top = name.partition(".")[0]
        if not name:
            found.append(f"{line}: a relative import that leaves the pack")
        elif top == "rollout_trainer":
            found.append(f"{line}: imports {name}; inside the pack imports are relative")
        elif not ours and top in COMFYUI and room != "host":
            found.append(f"{line}: imports {name} of ComfyUI outside host/")
        elif ours and room in LAYERS and top in LAYERS and top not in LAYERS[room] | {room}:
            found.append(f"{line}: {room} imports {top}")
        elif not ours and top in LAYERS and room != "host":
            found.append(f"{line}: imports {name}, which is not ours when ComfyUI loads the pack")
        elif not ours and top not in sys.stdlib_module_names | THIRD_PARTY.get(room, {top}):
            found.append(f"{line}: {room} imports {name}")
    return found


def modules() -> list[Path]:
    """All modules of the pack: those at the root that it consists of, and those in its rooms."""
    in_rooms = [path for room in LAYERS for path in sorted((ROOT / room).rglob("*.py"))]
    return [path for path in (ROOT / "__init__.py", ROOT / "__main__.py") if path.exists()] + in_rooms


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_keep_to_the_layers(path):
    folder = ".".join(path.relative_to(ROOT).parts[:-1])
    assert breaches(path.read_text(encoding="utf-8"), folder) == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("samplers", "from ..training import denoiser"),
        ("samplers", "from .. import training"),
        ("samplers", "import numpy as np"),
        ("training", "from ..nodes.train import RolloutTrainLoRA"),
        ("training", "def late():\n    from ..host import current"),
        ("training", "import comfy.model_management"),
        ("training", "import rollout_trainer.samplers"),
        ("training", "import samplers"),
        ("training", "from ...elsewhere import x"),
        ("nodes", "from comfy_api.latest import io"),
        ("nodes", "import importlib\nio = importlib.import_module('comfy_api.latest')"),
        ("nodes", "import nodes"),
        ("host", "from ..training import loop"),
        ("host", "from ..nodes import RolloutTrainerExtension"),
        ("", "import folder_paths"),
    ],
)
def test_a_breach_is_found(room, source):
    assert len(breaches(source, room)) == 1


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("samplers", "import math\nimport torch\nfrom .schedules import Schedule\nfrom . import euler"),
        ("training", "import diffusers\nfrom ..samplers import integrate\nfrom .denoiser import Denoiser"),
        ("nodes", "from .. import host, training\nfrom ..samplers import SAMPLERS"),
        ("host", "import nodes\nfrom comfy_api.latest import io\nfrom . import standalone"),
        ("", "from .nodes import RolloutTrainerExtension\nfrom .host import standalone"),
    ],
)
def test_what_is_allowed_passes(room, source):
    assert breaches(source, room) == []
