"""Nodes for the tests alone: conditioning from a file, a tiny epsilon model, slow models, numbers to look at."""

import time
from pathlib import Path

import comfy.ops
import comfy.sd
import folder_paths
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from safetensors.torch import load_file

from .device_nodes import NODES as DEVICE_NODES
from .lora_nodes import TestLoRAForms
from .model_nodes import NODES as MODEL_NODES
from .scene_nodes import NODES as SCENE_NODES
from .small_files import NODES as FILE_NODES

CATEGORY = "tests"


class TestConditioning:
    """CONDITIONING from ``context [N, L, D]`` and ``pooled [N, P]`` (optional) of a file in the input folder."""

    CATEGORY, FUNCTION, RETURN_TYPES = CATEGORY, "load", ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802  (the host's name)
        return {"required": {"file": ("STRING", {}), "first": ("INT", {"default": 0}), "rows": ("INT", {})}}

    def load(self, file, first, rows):
        cond = load_file(Path(folder_paths.get_input_directory()) / file)
        context, *pooled = (
            cond[name][first : first + rows] for name in ("context", "pooled") if name in cond
        )
        return ([[context, {"pooled_output": pooled[0]} if pooled else {}]],)


class TestEpsilonModel:
    """A MODEL of the shape of SD 1.5, cut down to one level, with random weights."""

    CATEGORY, FUNCTION, RETURN_TYPES = CATEGORY, "make", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"seed": ("INT", {"default": 0})}}

    def make(self, seed):
        network = UNetModel(
            image_size=32,
            in_channels=4,
            out_channels=4,
            model_channels=320,
            channel_mult=[1],
            num_res_blocks=[1],
            transformer_depth=[1],
            transformer_depth_output=[1, 1],
            transformer_depth_middle=-1,
            context_dim=768,
            num_heads=8,
            use_spatial_transformer=True,
            legacy=False,
            dtype=torch.float32,
            operations=comfy.ops.disable_weight_init,
        )
        generator = torch.Generator().manual_seed(seed)
        weights = {name: random_like(name, w, generator) for name, w in network.state_dict().items()}
        return (comfy.sd.load_diffusion_model_state_dict(weights),)


def random_like(name, weight, generator):
    """Weights that keep the size of what goes through: norms do nothing, the rest is drawn by its fan-in."""
    if weight.ndim == 1:
        return torch.full_like(weight, 1.0 if name.endswith("weight") else 0.0)
    return torch.randn(weight.shape, generator=generator) / weight[0].numel() ** 0.5


class TestSlowModel:
    """A model that takes its time for every call; `TestCalls` tells how many there were."""

    CATEGORY, FUNCTION, RETURN_TYPES = CATEGORY, "slow", ("MODEL",)
    calls: list[int] = []  # noqa: RUF012  rows of each call, since a model was last made slow

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"model": ("MODEL",), "seconds": ("FLOAT", {"min": 0.0, "step": 0.01})}}

    def slow(self, model, seconds):
        self.calls.clear()

        def call(apply_model, options):
            self.calls.append(len(options["input"]))
            time.sleep(seconds)
            return apply_model(options["input"], options["timestep"], **options["c"])

        model = model.clone()
        model.set_model_unet_function_wrapper(call)
        return (model,)


class TestCalls:
    """Rows of every call of the slow model so far."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = CATEGORY, "tell", (), True

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {}}

    @classmethod
    def IS_CHANGED(cls):  # noqa: N802
        return float("nan")

    def tell(self):
        return {"ui": {"calls": list(TestSlowModel.calls)}}


class TestShowSigmas:
    """SIGMAS as numbers."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = CATEGORY, "show", (), True

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"sigmas": ("SIGMAS",)}}

    def show(self, sigmas):
        return {"ui": {"sigmas": sigmas.tolist()}}


NODE_CLASS_MAPPINGS = {
    cls.__name__: cls
    for cls in (
        TestConditioning,
        TestEpsilonModel,
        TestSlowModel,
        TestCalls,
        TestShowSigmas,
        *MODEL_NODES,
        *DEVICE_NODES,
        *FILE_NODES,
        *SCENE_NODES,
        TestLoRAForms,
    )
}
