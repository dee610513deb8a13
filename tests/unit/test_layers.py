"""Who may import whom: nodes -> training -> samplers, host at the side, ComfyUI behind host alone.

Inside training/ and host/ the rooms stand in an order too: `ROOMS`. The rules are in docs/architecture.md.
The check reads the sources, so an import inside a function or under TYPE_CHECKING counts like any other.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Room -> the rooms that it may import from, besides itself.
SHARED = {"messages"}
"""Modules at the pack's root that every layer may import; they import nothing of ours."""
LAYERS = {
    "samplers": set(),
    "training": {"samplers"},
    "host": set(),
    "nodes": {"samplers", "training", "host"},
}
# Rooms of a layer, lowest first, each with those below it that it may import from. A room is a folder, or a module
# that lies beside the folders.
ROOMS: dict[str, dict[str, set[str]]] = {
    "training": {
        "checks": set(),
        "files": {"checks"},
        "forms": set(),
        "conditioning": set(),
        "objective": {"checks", "conditioning", "forms"},
        "lora": {"checks", "files"},
        "models": {"checks", "conditioning", "files", "forms", "lora"},
        "data": {"conditioning", "files", "models"},
        "pictures": {"conditioning", "data", "files", "forms", "models", "objective"},
        "trainer": {"checks", "conditioning", "data", "forms", "lora", "models", "objective", "pictures"},
        "plan": {"data", "forms", "lora", "models", "objective", "pictures", "trainer"},
        "runs": {"checks", "data", "files", "lora", "models", "objective", "pictures", "trainer"},
        "trial": {
            *(
                "checks",
                "conditioning",
                "data",
                "files",
                "forms",
                "models",
                "objective",
                "pictures",
                "runs",
                "trainer",
            ),
        },
    },
    "host": {
        "interface": set(),
        "paths": set(),
        "report": set(),
        "schema": set(),
        "terminal": set(),
        "graph": {"schema"},
        "standalone": {"graph", "interface", "paths", "report", "schema", "terminal"},
        "comfyui": {"interface", "paths", "report", "terminal"},
        "remote": {"graph", "interface", "paths", "report", "standalone"},
    },
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


def between_rooms(source: str, module: str) -> list[str]:
    """Return one line for every import that goes from `module`, by its dotted name, to a room that it must not know."""
    layer, _, inside = module.partition(".")
    rooms, room = ROOMS.get(layer, {}), inside.partition(".")[0]
    if not rooms or room == "__init__":  # a layer's own front door may open any room
        return []
    if room not in rooms:
        return [f"1: {module} is in no room of {layer}; add it to ROOMS"]
    names = [(line, name) for line, name, ours in imported(source, module.rpartition(".")[0]) if ours]
    reached = [(line, name.split(".")[1]) for line, name in names if name.startswith(f"{layer}.")]
    return [f"{line}: {room} imports {to}" for line, to in reached if to not in rooms[room] | {room}]


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
    return [
        path for name in ("__init__", "__main__", *SHARED) if (path := ROOT / f"{name}.py").exists()
    ] + in_rooms


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_keep_to_the_layers(path):
    source, parts = path.read_text(encoding="utf-8"), path.relative_to(ROOT).with_suffix("").parts
    assert breaches(source, ".".join(parts[:-1])) == []
    assert between_rooms(source, ".".join(parts)) == []


def test_rooms_stand_on_lower_rooms_alone():
    for rooms in ROOMS.values():
        order = list(rooms)
        assert all(order.index(below) < order.index(room) for room in rooms for below in rooms[room])


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("training.objective.losses", "from ..lora.adapter import Adapter"),
        ("training.objective.losses", "from .. import trainer"),
        ("training.data.dataset", "def late():\n    from ..runs.folder import RunFolder"),
        ("training.forms", "from .conditioning import Cond"),
        ("training.elsewhere", ""),
        ("host.graph.normal", "from ..standalone.host import StandaloneHost"),
        ("host.comfyui.host", "from ..standalone.host import StandaloneHost"),
        ("host.schema", "from .interface import Host"),
    ],
)
def test_an_import_from_a_higher_room_is_found(module, source):
    assert len(between_rooms(source, module)) == 1


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
