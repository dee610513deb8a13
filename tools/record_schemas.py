"""Print what workflow files rely on of every node schema: ``python tools/record_schemas.py > FILE``.

Workflow files store widgets by position and links by slot, so ids, order, types, defaults and which inputs are
optional are for ever. `tests/unit/nodes/schemas_0.1.json` was written by this on the code before settings were
declared on their config classes; `test_schemas.py` compares with it. Do not write it anew: it is what was saved.
"""

from __future__ import annotations

import importlib
import json
import math
from typing import Any

from make_en import load_pack

KEPT = (
    "optional",
    "default",
    "min",
    "max",
    "step",
    "round",
    "options",
    "multiline",
    "control_after_generate",
)


def schemas() -> dict[str, Any]:
    """Return inputs and outputs of every node, by its id, without texts."""
    nodes = importlib.import_module("rollout_trainer.nodes")
    return {schema.node_id: recorded(schema) for schema in (node.define_schema() for node in nodes.NODES)}


def recorded(schema: Any) -> dict[str, Any]:
    """Return what one schema says of its inputs and outputs; what is not said is left out."""
    return {
        "inputs": [
            {"id": own.id, "type": own.io_type}
            | {key: plain(value) for key in KEPT if (value := getattr(own, key, None)) is not None}
            for own in schema.inputs
        ],
        "outputs": [{"type": own.io_type, "name": own.display_name} for own in schema.outputs],
    }


def plain(value: Any) -> Any:
    """Return a value as JSON has it: options as a list, and 0 for 0.0, which the front end writes too."""
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return int(value)
    return list(value) if isinstance(value, (list, tuple)) else value


if __name__ == "__main__":
    load_pack()
    print(json.dumps(schemas(), indent=1))
