"""Loading a base model."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ..host import current, io
from ..training.models.diffusers import Weights
from ..training.models.families import check_diffusers, load_diffusers
from ..training.models.source import LoadedModel
from ..training.models.stored import FORMS
from . import sockets
from .base import Node
from .schemas import schema

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class RolloutLoadDiffusers(Node):
    """A base model from a diffusers pipeline folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="RolloutLoadDiffusers",
            display_name="Load Diffusers Model",
            description="Loads a diffusers pipeline folder (SD1.5 / SD2, SDXL, SD3 or Flux) for training. demo/model "
            "is the small model that comes with the pack. Nothing is downloaded.",
            inputs=[
                io.String.Input(
                    "folder",
                    default="demo/model",
                    tooltip="Folder with a model_index.json. A relative path is looked for in ComfyUI's folders, "
                    "then in the pack.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default="float32",
                    tooltip="Precision of the base model: bfloat16 halves its memory on a GPU; float32 for the demo "
                    "model and the CPU. The LoRA is always float32.",
                ),
                io.Combo.Input(
                    "weights",
                    options=["full", *FORMS],
                    default="full",
                    optional=True,
                    tooltip="How the base model's weights are stored: full as loaded; float8 or int8 in half of "
                    "bfloat16's memory, nf4 in a quarter (needs the package bitsandbytes). They are rounded, so that "
                    "it is a slightly different model; calculations stay in dtype.",
                ),
                io.Boolean.Input(
                    "swap_weights",
                    default=False,
                    optional=True,
                    tooltip="Keep the base model in the computer's memory and fetch each block as it is used: a large "
                    "model trains on a small GPU, slower. Needs gradient_checkpointing. Not for SD1.5, SD2 and SDXL.",
                ),
            ],
            outputs=[
                sockets.Model.Output(
                    display_name="model",
                    tooltip="The base model, to train or to draw with: for Train LoRA, Encode Dataset, "
                    "Sample and the other nodes of this pack.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, folder: str | None) -> bool | str:
        """Look at the folder before anything runs; None: its name comes through a link, not known yet."""
        if folder is None:
            return True
        try:
            check_diffusers(current().resolve_path(folder))
        except ValueError as err:
            return str(err)
        return True

    @classmethod
    def execute(
        cls, folder: str, dtype: str, weights: Weights = "full", swap_weights: bool = False
    ) -> io.NodeOutput:
        """Load it to the host's device."""
        host = current()
        path = host.resolve_path(folder)
        return io.NodeOutput(
            LoadedModel(load_diffusers(path, host.device(), DTYPES[dtype], weights, swap_weights))
        )


class RolloutLoadLoRA(Node):
    """A LoRA file on a base model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="RolloutLoadLoRA",
            display_name="Load LoRA File (Rollout)",
            description="Puts a LoRA file on a model, to sample with it or to train it further. To continue a run "
            "exactly, with its optimizer, use Resume Training.",
            inputs=[
                sockets.Model.Input("model", tooltip="The base model; it stays as it is."),
                io.String.Input(
                    "file",
                    default="",
                    tooltip="The LoRA file; a name without a folder is looked for among ComfyUI's LoRAs.",
                ),
            ],
            outputs=[
                sockets.Model.Output(
                    display_name="model",
                    tooltip="The same model with the LoRA on it, to draw with or to train on.",
                )
            ],
        )

    @classmethod
    def execute(cls, model: LoadedModel, file: str) -> io.NodeOutput:
        """Read it."""
        return io.NodeOutput(model.with_adapter(model.source.read_lora(lora_path(file))))


def lora_path(file: str) -> Path:
    """Where a LoRA file is that a user named: among the host's LoRAs, or a path; if nowhere, the path as named."""
    host = current()
    named = host.resolve_path(file)
    loras = Path(os.path.normpath(host.loras_dir()))
    inside = Path(os.path.normpath(loras / file)).is_relative_to(loras)
    own = [host.resolve_path(str(loras / file))] if inside else []
    places = [*own, named, host.resolve_path(f"loras/{file}")]
    return next((place for place in places if place.is_file()), named)
