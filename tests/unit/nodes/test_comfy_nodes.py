"""Nodes that need ComfyUI, on the standalone host: they say so."""

import pytest

from rollout_trainer.nodes.comfy import RolloutApplyLoRA, RolloutDatasetFromLatents, RolloutFromComfyModel


@pytest.mark.parametrize(
    "execute",
    [
        lambda: RolloutFromComfyModel.execute(model=None),
        lambda: RolloutDatasetFromLatents.execute(model=[None], latents=[], conditioning=[], repeats=[1]),
        lambda: RolloutApplyLoRA.execute(model=None, strength=1.0, file="a.safetensors"),
    ],
)
def test_without_comfyui_the_error_says_what_to_do(execute):
    with pytest.raises(RuntimeError, match="must run in ComfyUI"):
        execute()
