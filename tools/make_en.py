"""Write `locales/en/nodeDefs.json` from the node schemas: ``python tools/make_en.py``.

English lives in the schemas; the file exists because the front end looks names, tooltips and options up by
language, and because translators need something to translate. `test_locales.py` fails when it is out of date.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "locales" / "en" / "nodeDefs.json"


def english() -> dict[str, Any]:
    """Return all texts of the pack's nodes, in the layout of the host's `nodeDefs.json`."""
    nodes = importlib.import_module("rollout_trainer.nodes")
    return {schema.node_id: texts(schema) for schema in (node.define_schema() for node in nodes.NODES)}


def texts(schema: Any) -> dict[str, Any]:
    """Return the texts of one node. The host numbers outputs; `options` is read by our own `web/locale.js`."""
    outputs = {str(i): output_texts(o) for i, o in enumerate(schema.outputs)}
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": {i.id: input_texts(i) for i in schema.inputs},
        "outputs": outputs,
    }


def input_texts(own: Any) -> dict[str, Any]:
    """Return name, tooltip and options of one input."""
    found: dict[str, Any] = {"name": own.display_name or own.id}
    if own.tooltip:
        found["tooltip"] = own.tooltip
    if getattr(own, "options", None):
        found["options"] = {str(option): str(option) for option in own.options}
    return found


def output_texts(own: Any) -> dict[str, str]:
    """Return name and tooltip of one output."""
    return {"name": own.display_name or own.io_type} | ({"tooltip": own.tooltip} if own.tooltip else {})


def load_pack() -> None:
    """Make this checkout importable as `rollout_trainer`; in a test run `tests/conftest.py` did so already."""
    spec = importlib.util.spec_from_file_location(
        "rollout_trainer", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules["rollout_trainer"] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)


if __name__ == "__main__":
    load_pack()
    OUT.write_text(json.dumps(english(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
