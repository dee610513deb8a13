"""The graph that is kept with a run, as ComfyUI hands it to a node that runs."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

from rollout_trainer.nodes.train import graph_of


def test_what_comfyui_notes_while_it_runs_is_not_kept():
    """It writes down what a node's IS_CHANGED said: NaN of one that is always run anew, which is no JSON."""
    prompt = {"1": {"class_type": "Any", "inputs": {"text": "x"}, "is_changed": [math.nan]}}
    hidden = SimpleNamespace(prompt=prompt, extra_pnginfo={"workflow": {"nodes": []}})
    kept = graph_of(SimpleNamespace(hidden=hidden))
    assert json.dumps(kept, allow_nan=False)
    assert kept["prompt"] == {"1": {"class_type": "Any", "inputs": {"text": "x"}}}
    assert kept["workflow"] == {"nodes": []}
    assert "is_changed" in prompt["1"]  # ComfyUI's own stays as it is


def test_there_is_none_where_no_host_tells_it():
    assert graph_of(SimpleNamespace()) == {}
    assert graph_of(SimpleNamespace(hidden=SimpleNamespace(prompt=None, extra_pnginfo=None))) == {
        "prompt": {}
    }
