"""ComfyUI's own MODEL, LATENT and CONDITIONING: what training needs of them, and the way back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..host import io, models
from ..training.data.latents import Latents, dataset_from_latents
from ..training.files import read_file
from ..training.models.hosted import HostModel
from ..training.models.source import LoadedModel
from ..training.runs.run import Run
from . import sockets
from .base import Node
from .model import lora_path
from .schemas import schema


def require_comfyui() -> None:
    """Raise where there is no MODEL.

    Raises:
        RuntimeError: the graph runs on the standalone host.
    """
    if models is None:
        raise RuntimeError(
            "this node must run in ComfyUI, whose MODEL it takes; run the graph with --comfyui DIR, or use "
            "Load Diffusers Model"
        )


def hosted_inputs() -> list[io.Input]:
    """What a MODEL of ComfyUI needs beside it, on nodes that take one."""
    return [
        io.Clip.Input("clip", optional=True, tooltip="If model is a MODEL of ComfyUI: encodes the captions."),
        io.Vae.Input(
            "vae", optional=True, tooltip="If model is a MODEL of ComfyUI: encodes pictures and decodes them."
        ),
    ]


def as_model(given: Any, clip: Any = None, vae: Any = None) -> LoadedModel:
    """A model to train or to draw with, of what a socket took: one of ours as it is, a MODEL of ComfyUI made one.

    Args:
        clip, vae: of a MODEL; needed for captions and pictures alone.

    Raises:
        ValueError: they were given for a model that brings its own.
    """
    if not isinstance(given, LoadedModel):
        require_comfyui()
        return LoadedModel(HostModel(models.ComfyModel(given, clip, vae, 0.0)))
    if clip is not None or vae is not None:
        raise ValueError(
            f"clip and vae must not be connected for {given.source.name}, which brings its own; they are for a MODEL "
            "of ComfyUI. Take their wires away"
        )
    return given


def with_clip_vision(model: LoadedModel, clip_vision: Any) -> LoadedModel:
    """The same model, which is told what `clip_vision` sees in given frames; None: it is not.

    Raises:
        ValueError: it is no MODEL of ComfyUI.
    """
    if clip_vision is None:
        return model
    if not isinstance(model.source, HostModel):
        raise ValueError(
            f"clip_vision must not be connected for {model.source.name}; it is for image-to-video models of ComfyUI. "
            "Take its wire away"
        )
    own: Any = model.source.network
    return LoadedModel(
        HostModel(models.ComfyModel(own.patcher, own.clip, own.vae, own.guidance, clip_vision))
    )


class RolloutFromComfyModel(Node):
    """A MODEL of any loader, to train."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="RolloutFromComfyModel",
            display_name="Model from ComfyUI",
            description="Makes any MODEL trainable: any family, any loader, with its patches and its shift. The "
            "MODEL itself stays as it is. CLIP and VAE are needed only for captions and pictures.",
            inputs=[
                io.Model.Input("model", tooltip="The base model."),
                io.Clip.Input("clip", optional=True, tooltip="Encodes captions and prompts."),
                io.Vae.Input("vae", optional=True, tooltip="Encodes pictures and decodes previews."),
                io.Float.Input(
                    "guidance",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Guidance for models that take it as an input (Flux dev, HunyuanVideo): 1 is usual in "
                    "training. 0 leaves it to ComfyUI (3.5 for Flux). Other models do not use it.",
                ),
            ],
            outputs=[
                sockets.Model.Output(
                    display_name="model",
                    tooltip="The same model, ready to be trained or drawn with by the nodes of this pack.",
                )
            ],
        )

    @classmethod
    def execute(cls, model: Any, clip: Any = None, vae: Any = None, guidance: float = 0.0) -> io.NodeOutput:
        """Wrap it."""
        require_comfyui()
        return io.NodeOutput(LoadedModel(HostModel(models.ComfyModel(model, clip, vae, guidance))))


class RolloutDatasetFromLatents(Node):
    """LATENT and CONDITIONING as data."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="RolloutDatasetFromLatents",
            display_name="Dataset from Latents",
            description="Makes training data from latents and conditioning, in batches or in lists. Latents may have "
            "different sizes. Give one caption for all pictures, or one for each in the same order. With a noise "
            "mask, only what it covers is trained.",
            is_input_list=True,
            inputs=[
                sockets.Model.Input(
                    "model", tooltip="The model that will be trained; made by Model from ComfyUI."
                ),
                io.Latent.Input("latents", tooltip="Pictures, encoded by the model's VAE."),
                io.Conditioning.Input(
                    "conditioning", tooltip="Their captions: one for all, or one for each."
                ),
                io.Conditioning.Input(
                    "empty",
                    optional=True,
                    tooltip="Conditioning of an empty text, for caption_dropout. Without it the model's CLIP makes "
                    "one, if it has a CLIP.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="Which parts of each picture are trained: one mask for all, or one for each.",
                ),
                io.Int.Input(
                    "repeats",
                    default=1,
                    min=1,
                    max=10000,
                    tooltip="How often each picture is used in one pass over the data.",
                ),
            ],
            outputs=[
                sockets.Data.Output(
                    display_name="data", tooltip="The latents and their conditioning, ready for training."
                ),
                io.String.Output(
                    display_name="summary", tooltip="How many samples there are, and in which sizes."
                ),
            ],
        )

    @classmethod
    @torch.inference_mode(False)
    def execute(
        cls,
        model: list[LoadedModel],
        latents: list[Mapping[str, Any]],
        conditioning: list[Sequence[Any]],
        repeats: list[int],
        empty: list[Sequence[Any]] | None = None,
        masks: list[Tensor] | None = None,
    ) -> io.NodeOutput:
        """Collect, check, and bring to the model's space."""
        require_comfyui()
        source = host_model(model[0])
        with torch.no_grad():
            data = dataset_from_latents(
                [latent(source, given) for given in latents],
                [row for given in conditioning for row in models.conditioning_rows(given)],
                empty_caption(source, empty),
                None if masks is None else [row for given in masks for row in given.clone().split(1)],
                repeats[0],
                source.name,
            )
        return io.NodeOutput(data, data.summary(), ui={"text": (data.summary(),)})


class RolloutApplyLoRA(Node):
    """A trained LoRA on a MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="RolloutApplyLoRA",
            display_name="Apply Trained LoRA",
            description="Puts the LoRA of a run, or a LoRA file, on a MODEL, so that ComfyUI's own nodes can sample "
            "with it in the graph that trains it.",
            inputs=[
                io.Model.Input("model", tooltip="The model to sample with; it stays as it is."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How strongly the LoRA acts; 1 is as trained.",
                ),
                io.String.Input(
                    "file",
                    default="",
                    tooltip="LoRA file, if no run is connected; a name without a folder is looked for among "
                    "ComfyUI's LoRAs.",
                ),
                sockets.Run.Input("run", optional=True, tooltip="The state whose LoRA is applied."),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="Your MODEL with the trained LoRA on it: for KSampler and every other node of "
                    "ComfyUI.",
                )
            ],
        )

    @classmethod
    def execute(cls, model: Any, strength: float, file: str, run: Run | None = None) -> io.NodeOutput:
        """Patch a clone."""
        require_comfyui()
        if (run is None) == (not file.strip()):
            got = "neither" if run is None else "both"
            raise ValueError(
                f"run or file must be given, one of them, got {got}; connect a run or name a file"
            )
        return io.NodeOutput(models.with_lora(model, lora_of(run, file.strip()), strength))


def lora_of(run: Run | None, file: str) -> dict[str, Tensor]:
    """Tensors of a run's LoRA, or of a file."""
    if run is not None:
        return run.source.lora_tensors(run.adapter)
    return read_file(lora_path(file))[0]


def host_model(model: LoadedModel) -> HostModel:
    """The host's model behind a ROLLOUT_MODEL.

    Raises:
        ValueError: it is another backend's.
    """
    if not isinstance(model.source, HostModel):
        raise ValueError(
            f"model must come from Model from ComfyUI, got {model.source.name}; use Encode Dataset for its data"
        )
    return model.source


def latent(source: HostModel, given: Mapping[str, Any]) -> Latents:
    """A LATENT as the network sees it, with its noise mask and the frames that it says are given.

    Raises:
        ValueError: it holds several streams, as video and sound.
    """
    if getattr(given["samples"], "is_nested", False):
        raise ValueError(
            "latents must be pictures or video alone, got video with sound; take the video of it (LTXV Separate AV "
            "Latent), sound is not trained"
        )
    samples = source.network.latent_in(given["samples"].clone()).float()
    mask = given.get("noise_mask")
    if mask is None:
        return Latents(samples, None)
    return Latents(samples, mask.clone(), source.network.given_frames(samples, mask.clone()))


def empty_caption(source: HostModel, empty: list[Sequence[Any]] | None) -> Mapping[str, Tensor] | None:
    """Conditioning of the empty caption, wired or encoded; None where there is neither."""
    if empty is not None:
        (row, *_) = models.conditioning_rows(empty[0])
        return dict(row)
    clip = getattr(source.network, "clip", None)
    return None if clip is None else source.network.encode_caption("")
