"""Write `web/facts.js`, what the front end must know of the Python side: ``python tools/make_web_facts.py``.

Solvers are those of `SAMPLERS`, losses those that `live.DRAWN` names, recipes those of `RECIPES`. A file, and not a
route, because the scripts' arithmetic needs no host: it is the same in every front end and in node's test runner.
`test_web_facts.py` fails when the file is out of date.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from make_en import load_pack

OUT = Path(__file__).resolve().parents[1] / "web" / "facts.js"
TEMPLATE = """// @ts-check
/** What the scripts know of the Python side. Written by tools/make_web_facts.py; do not edit. */

/**
 * Solvers by name: model calls of a step, and whether the setting `order` changes anything.
 * @type {{ [name: string]: { callsPerStep: number, hasOrder: boolean } | undefined }}
 */
export const SOLVERS = {
%s
};

/** The losses that a chart draws, in that order: columns of a run's curve. */
export const LOSSES = %s;

/**
 * By recipe and settings node: the widgets whose values are not the node's own.
 * @type {{ [recipe: string]: { [node: string]: { [widget: string]: string | number } } | undefined }}
 */
export const RECIPES = {
%s
};
"""


def facts() -> str:
    """The text of the module."""
    solvers = importlib.import_module("rollout_trainer.samplers").SAMPLERS
    losses = importlib.import_module("rollout_trainer.training.runs.live").DRAWN
    lines = [
        f"  {json.dumps(name)}: {{ callsPerStep: {solver.calls_per_step}, hasOrder: {json.dumps(solver.multistep)} }},"
        for name, solver in solvers.items()
    ]
    table = importlib.import_module("rollout_trainer.training.trainer.recipes").RECIPES
    recipes = [f"  {json.dumps(name)}: {json.dumps(unfolded(recipe))}," for name, recipe in table.items()]
    return TEMPLATE % ("\n".join(lines), json.dumps(list(losses)), "\n".join(recipes))


def unfolded(recipe: Any) -> dict[str, dict[str, Any]]:
    """The settings of a recipe as widgets that are not at their defaults, by node."""
    nodes = importlib.import_module("rollout_trainer.nodes.settings")
    configs = {
        "RolloutLoRASettings": (recipe.lora, nodes.LORA | {"preset": "preset"}),
        "RolloutOptimizerSettings": (recipe.optimizer, nodes.OPTIMIZER),
        "RolloutTimestepSettings": (recipe.timesteps, nodes.TIMESTEPS | nodes.LEVELS),
        "RolloutLossSettings": (recipe.loss, nodes.LOSS),
    }
    return {node: changed(config, widgets) for node, (config, widgets) in configs.items()}


def changed(config: Any, widgets: dict[str, str]) -> dict[str, Any]:
    """Widgets by id whose fields are not at their defaults."""
    values = {id: getattr(config, field) for id, field in widgets.items()}
    return {id: value for id, value in values.items() if value != getattr(type(config), widgets[id])}


if __name__ == "__main__":
    load_pack()
    OUT.write_text(facts(), encoding="utf-8")
