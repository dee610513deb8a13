"""Prompts that were saved before a widget existed: the host must not miss it."""

import pytest

from rollout_trainer.host import io
from rollout_trainer.nodes import NODES

LATER = {
    "RolloutTrainLoRA": ("preview_every", "activation_offload", "memory"),
    "RolloutInitTraining": ("preview_every", "activation_offload", "memory"),
    "RolloutTrainSteps": ("until_step", "learning_rate"),
    "RolloutEncodeDataset": ("caption_variants", "keep_tags"),
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
