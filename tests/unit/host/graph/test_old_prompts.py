"""Prompts that were saved before a widget existed: the host must not miss it."""

import pytest

from rollout_trainer.host import io
from rollout_trainer.host.graph.catalog import from_nodes
from rollout_trainer.host.graph.front_end import widget_values
from rollout_trainer.host.graph.normal import from_api
from rollout_trainer.nodes import NODES
from rollout_trainer.nodes.settings import RolloutLoRASettings

LATER = {
    "RolloutTrainLoRA": (
        "preview_every",
        "activation_offload",
        "memory",
        "hold_out",
        "patience",
        "save_minutes",
        "tensorboard",
        "recipe",
        "save_lora_as",
        "compile",
    ),
    "RolloutInitTraining": (
        "preview_every",
        "activation_offload",
        "memory",
        "hold_out",
        "patience",
        "save_minutes",
        "recipe",
        "compile",
    ),
    "RolloutTrainSteps": ("until_step", "learning_rate", "tensorboard"),
    "RolloutLoRASettings": ("preset",),
    "RolloutTimestepSettings": ("sigma_low", "sigma_high"),
    "RolloutDatasetFromFolder": (
        "subfolders",
        *(f"control_{i}{end}" for i in (1, 2, 3) for end in ("", "_role")),
        *(f"clip_{name}" for name in ("frames", "fps", "part", "gives")),
    ),
    "RolloutEncodeDataset": ("caption_variants", "keep_tags", "caption_weights"),
}
"""Widgets that came after a node was first released."""


@pytest.mark.parametrize("node", LATER)
def test_widgets_that_came_later_are_optional_and_last(node):
    (cls,) = (cls for cls in NODES if cls.define_schema().node_id == node)
    widgets = [i for i in cls.define_schema().inputs if isinstance(i, io.WidgetInput)]
    later = [w for w in widgets if w.id in LATER[node]]
    assert [w.id for w in later] == list(LATER[node])
    assert widgets[-len(later) :] == later
    assert all(w.optional and w.default is not None for w in later)


def test_a_graph_from_before_there_were_presets_trains_the_layers_that_it_had():
    """In both forms of a file: the prompt leaves the widget out, the workflow has one value less."""
    catalog = from_nodes(NODES)
    values = {"kind": "lora", "rank": 8, "alpha": 8.0, "dropout": 0.0, "targets": ""}
    prompt = {"1": {"class_type": "RolloutLoRASettings", "inputs": values}}
    node = from_api(prompt, catalog).nodes["1"]
    (config,) = RolloutLoRASettings.execute(**node.inputs).args
    assert config.preset == "attention"
    spec = catalog["RolloutLoRASettings"]
    read = widget_values(spec, {"widgets_values": list(values.values())})
    assert read == values | {"preset": "attention"}
    new = widget_values(spec, {"widgets_values": [*values.values(), "all"]})
    assert new["preset"] == "all"
    assert spec.input("preset").default == "attention+mlp"
