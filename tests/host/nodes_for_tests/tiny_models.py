"""Tiny networks of many families with random weights, which the host's own detection takes for the real thing.

Built from the host's classes, so that the names of the weights are those of the version that runs.
"""

import importlib
import importlib.util
from contextlib import contextmanager

import torch
from comfy import ops, sd

FLUX = {
    "in_channels": 16, "out_channels": 16, "vec_in_dim": 32, "context_in_dim": 48, "hidden_size": 128,
    "mlp_ratio": 4.0, "num_heads": 1, "depth": 1, "depth_single_blocks": 2, "axes_dim": [16, 56, 56],
    "theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
HUNYUAN = {
    "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 48, "hidden_size": 128,
    "mlp_ratio": 4.0, "num_heads": 1, "depth": 1, "depth_single_blocks": 2, "axes_dim": [16, 56, 56],
    "theta": 256, "patch_size": [1, 2, 2], "qkv_bias": True, "guidance_embed": True, "byt5": False,
    "meanflow": False, "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
}  # fmt: skip


REAL_FLUX = FLUX | {
    "vec_in_dim": 768, "context_in_dim": 4096, "hidden_size": 3072, "num_heads": 24, "depth": 19,
    "depth_single_blocks": 38,
}  # fmt: skip
"""The sizes of Flux dev: 12 billion weights."""


def real_flux(dtype, depth=None):
    """A MODEL of Flux's real size with random weights, or of so many blocks of each kind.

    One block of random values fills every matrix, over and over: to draw twelve billion takes minutes.
    """
    from comfy.ldm.flux.model import Flux

    sizes = known(REAL_FLUX | (dict.fromkeys(("depth", "depth_single_blocks"), depth) if depth else {}), Flux)
    with torch.device("meta"), usual_layers():
        shapes = Flux(
            image_model="flux", **sizes, dtype=dtype, operations=ops.disable_weight_init
        ).state_dict()
    values = (0.02 * torch.randn((1 << 20) + 7, generator=torch.Generator().manual_seed(0))).to(dtype)
    weights = {}
    for name, shape in shapes.items():
        weights[name] = weight = torch.empty(shape.shape, dtype=dtype)
        flat = weight.view(-1)
        whole = len(flat) // len(values) * len(values)
        flat[:whole].view(-1, len(values)).copy_(values)
        flat[whole:].copy_(values[: len(flat) - whole])
        if name.endswith("norm.scale"):
            weight.fill_(1)
    return sd.load_diffusion_model_state_dict(weights)


@contextmanager
def usual_layers():
    """Layers made inside have weights at once: those of a host that fetches weights as they are used have none."""
    if importlib.util.find_spec("comfy.memory_management") is None:
        yield
        return
    memory = importlib.import_module("comfy.memory_management")
    before, memory.aimdo_enabled = getattr(memory, "aimdo_enabled", False), False
    try:
        yield
    finally:
        memory.aimdo_enabled = before


def network(family, context=48, pooled=32):
    """An uninitialised network; `context`, `pooled`: sizes of the conditioning of SD3 and Flux."""
    with usual_layers():
        return _network(family, context, pooled)


def _network(family, context, pooled):
    common = {"dtype": torch.float32, "operations": ops.disable_weight_init}
    if family == "sd3":
        from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT

        depth = 2
        sizes = {"in_features": context, "out_features": 64 * depth}
        embedder = {"target": "torch.nn.Linear", "params": sizes}
        return MMDiT(
            input_size=None, in_channels=16, depth=depth, adm_in_channels=pooled, context_embedder_config=embedder,
            num_patches=256, pos_embed_max_size=16, pos_embed_scaling_factor=None, **common,
        )  # fmt: skip
    if family == "flux":
        from comfy.ldm.flux.model import Flux

        sizes = FLUX | {"vec_in_dim": pooled, "context_in_dim": context}
        return Flux(image_model="flux", **known(sizes, Flux), **common)
    if family == "hunyuan_video":
        from comfy.ldm.hunyuan_video.model import HunyuanVideo

        return HunyuanVideo(image_model="hunyuan_video", **known(HUNYUAN, HunyuanVideo), **common)
    if family in ("wan", "wan_i2v"):
        from comfy.ldm.wan.model import WanModel

        kind = (
            {"model_type": "i2v", "in_dim": 36}
            if family == "wan_i2v"
            else {"model_type": "t2v", "in_dim": 16}
        )
        return WanModel(**kind, dim=128, ffn_dim=128, num_heads=1, num_layers=2, out_dim=16, **common)
    if family == "cogvideox":
        from comfy.ldm.cogvideo.model import CogVideoXTransformer3DModel

        return CogVideoXTransformer3DModel(
            num_attention_heads=1, time_embed_dim=64, text_embed_dim=48, num_layers=2,
            use_rotary_positional_embeddings=True, **common,
        )  # fmt: skip
    if family == "sd15":
        from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

        return UNetModel(
            image_size=32, in_channels=4, out_channels=4, model_channels=320, channel_mult=[1],
            num_res_blocks=[1], transformer_depth=[1], transformer_depth_output=[1, 1],
            transformer_depth_middle=-1, context_dim=768, num_heads=8, use_spatial_transformer=True,
            legacy=False, **common,
        )  # fmt: skip
    raise ValueError(family)


def known(options, cls):
    """Those of `options` that this version's parameters have."""
    import dataclasses
    import sys

    module = sys.modules[cls.__module__]
    params = getattr(module, f"{cls.__name__}Params")
    names = {field.name for field in dataclasses.fields(params)}
    return {name: value for name, value in options.items() if name in names}


def state_dict(family, seed, **sizes):
    """Random weights of a family."""
    generator = torch.Generator().manual_seed(seed)
    given = network(family, **sizes).state_dict()
    return {name: random_like(name, w, generator) for name, w in given.items()}


def scaled_fp8(weights):
    """The same weights as in files of float8 with a scale for each matrix of the blocks."""
    out = {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}
    for name, weight in weights.items():
        out[name] = weight
        if name.endswith(".weight") and weight.ndim == 2 and "blocks." in name:
            scale = weight.abs().max() / 448
            out[name] = (weight / scale).to(torch.float8_e4m3fn)
            out[name.removesuffix("weight") + "scale_weight"] = scale
    return out


def load(family, seed, dtype=None, scaled=False):
    """A MODEL of a family through the host's loading of weights, but of no loader that could load it again."""
    weights = state_dict(family, seed)
    if scaled:
        weights = scaled_fp8(weights)
    options = {} if dtype is None else {"dtype": dtype}
    return sd.load_diffusion_model_state_dict(weights, model_options=options)


def random_like(name, weight, generator):
    """Weights that keep the size of what goes through: norms near one, the rest drawn by its fan-in."""
    if not weight.is_floating_point():
        return torch.zeros_like(weight)
    if weight.ndim == 0:
        return weight
    noise = torch.randn(weight.shape, generator=generator)
    if weight.ndim == 1:
        norm = "norm" in name or "ln_" in name
        return 0.02 * noise + (1.0 if norm and not name.endswith("bias") else 0.0)
    return noise / max(weight[0].numel(), 1) ** 0.5
