"""The pack's nodes, as ComfyUI and the standalone host list them. Thin: they build configs and call `training`."""

from __future__ import annotations

from ..host import ComfyExtension, current, io, serve
from ..training.runs.browse import Runs
from .arms import RolloutTrial
from .comfy import RolloutApplyLoRA, RolloutDatasetFromLatents, RolloutFromComfyModel
from .data import (
    RolloutDatasetFromFolder,
    RolloutDatasetFromImages,
    RolloutEncodeDataset,
    RolloutMixDatasets,
)
from .model import RolloutLoadDiffusers, RolloutLoadLoRA
from .pictures import (
    RolloutCompareImages,
    RolloutExposureBias,
    RolloutLossPlot,
    RolloutPreview,
    RolloutSample,
    RolloutSamplePrompts,
)
from .recipe import RolloutRecipe
from .sampler import RolloutSampler, RolloutSigmas
from .settings import (
    RolloutLoRASettings,
    RolloutLossSettings,
    RolloutOptimizerSettings,
    RolloutReflexFlow,
    RolloutScheduledSampling,
    RolloutSettingsFromJSON,
    RolloutSettingsToJSON,
    RolloutTimestepSettings,
)
from .train import (
    RolloutInitTraining,
    RolloutResumeTraining,
    RolloutSaveLoRA,
    RolloutTrainLoRA,
    RolloutTrainSteps,
    RolloutValidate,
)

NODES: list[type[io.ComfyNode]] = [
    RolloutLoadDiffusers,
    RolloutLoadLoRA,
    RolloutDatasetFromFolder,
    RolloutEncodeDataset,
    RolloutRecipe,
    RolloutLoRASettings,
    RolloutOptimizerSettings,
    RolloutTimestepSettings,
    RolloutLossSettings,
    RolloutScheduledSampling,
    RolloutReflexFlow,
    RolloutSettingsFromJSON,
    RolloutSettingsToJSON,
    RolloutTrainLoRA,
    RolloutInitTraining,
    RolloutTrainSteps,
    RolloutResumeTraining,
    RolloutValidate,
    RolloutSaveLoRA,
    RolloutSample,
    RolloutPreview,
    RolloutExposureBias,
    RolloutLossPlot,
    RolloutCompareImages,
    RolloutSampler,
    RolloutSigmas,
    RolloutFromComfyModel,
    RolloutDatasetFromLatents,
    RolloutApplyLoRA,
    RolloutDatasetFromImages,
    RolloutMixDatasets,
    RolloutSamplePrompts,
    RolloutTrial,
]


class RolloutTrainerExtension(ComfyExtension):
    """What `comfy_entrypoint` hands to the host."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All node classes; their ids are for ever."""
        # Not in `on_load`, which ComfyUI 0.3.64 does not call.
        serve(Runs(current().runs_dir(), current().output_dir(), current().loras_dir()))
        return NODES
