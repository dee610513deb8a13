"""Shipped files hold what their builder says, and the nodes' defaults beside it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from comfyui_process import ComfyUI
from shipped import WORKFLOWS, prompt_of

from rollout_trainer.host.graph.catalog import from_object_info

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def builders() -> dict[str, Any]:
    """What makes the graphs, by name; skip where Playwright, which the script saves them with, is missing."""
    pytest.importorskip("playwright.sync_api")
    sys.path.insert(0, str(TOOLS))
    try:
        spec = importlib.util.spec_from_file_location("make_workflows", TOOLS / "make_workflows.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["make_workflows"] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(TOOLS))
    made: dict[str, Any] = module.WORKFLOWS
    return made


def test_no_widget_has_a_value_that_nobody_gave_it(comfyui: ComfyUI) -> None:
    catalog = from_object_info(comfyui.object_info())
    for name, build in builders().items():
        assert (WORKFLOWS / f"{name}.json").is_file()
        saved, made = prompt_of(comfyui, name), build()
        for id, node in saved.items():
            defaults = {spec.name: spec.default for spec in catalog[node["class_type"]].inputs}
            given = made[id]["inputs"]
            assert node["class_type"] == made[id]["class_type"]
            for widget, value in node["inputs"].items():
                if isinstance(value, list) or (widget not in given and defaults[widget] is None):
                    continue  # a link, or a combo whose first value is its default
                assert value == given.get(widget, defaults[widget]), (name, node["class_type"], widget)
