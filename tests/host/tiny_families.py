"""Tiny random models of the families of ComfyUI, by the host's own config and model classes.

Imported by the host's interpreter alone. A family that this version does not know cannot be built: `build` raises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.clip_vision
import comfy.ldm.audio.embedders
import comfy.model_base as base
import comfy.model_patcher
import comfy.supported_models as supported
import torch
from torch import Generator, Tensor

Options = dict[str, Any]
FIXED = "fixed number of tokens"
"""In a caption's options: its length, whatever was asked."""


def plain(generator: Generator, tokens: int) -> Options:
    """Text alone, as the host's text encoders without a summary give it."""
    return {"pooled_output": None}


def pooled(width: int) -> Callable[[Generator, int], Options]:
    """Text with a summary."""
    return lambda g, n: {"pooled_output": torch.randn(1, width, generator=g)}


def vision(g: Generator) -> Any:
    """What CLIP Vision Encode gives."""
    out = comfy.clip_vision.Output()
    out["last_hidden_state"] = torch.randn(1, 257, 1280, generator=g)
    out["penultimate_hidden_states"] = torch.randn(1, 257, 1280, generator=g)
    out["image_embeds"] = torch.randn(1, 1024, generator=g)
    return out


def zero_terminal(config: Any) -> Any:
    """SDXL that predicts v, its last noise level without any picture in it."""
    config.sampling_settings["zsnr"] = True
    return base.SDXL(config, model_type=base.ModelType.V_PREDICTION)


def inpaint(config: Any) -> Any:
    """SDXL that takes a masked picture."""
    model = base.SDXL(config)
    model.set_inpaint()
    return model


@dataclass(frozen=True)
class Tiny:
    """A family made small."""

    config: str
    """Class of `comfy.supported_models`."""
    unet: Options
    """Its sizes."""
    latent: tuple[int, ...]
    """Shape of a latent, without the batch."""
    width: int
    """Of a caption's tokens."""
    options: Callable[[Generator, int], Options] = plain
    """What a caption of n tokens carries beside them."""
    make: Callable[[Any], Any] | None = None
    """The model of a config; None: as the host makes it."""
    given: bool = False
    """The first frame of its latents is given, by their noise mask."""


FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 32,
    "context_in_dim": 48,
    "hidden_size": 128,
    "mlp_ratio": 4.0,
    "num_heads": 1,
    "depth": 1,
    "depth_single_blocks": 2,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
HUN = {
    "image_model": "hunyuan_video",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 768,
    "context_in_dim": 48,
    "hidden_size": 128,
    "mlp_ratio": 4.0,
    "num_heads": 1,
    "depth": 1,
    "depth_single_blocks": 2,
    "axes_dim": [16, 56, 56],
    "theta": 256,
    "patch_size": [1, 2, 2],
    "qkv_bias": True,
    "guidance_embed": True,
    "byt5": False,
    "meanflow": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
    "meanflow_sum": False,
}
UNET = {
    "image_size": 32,
    "use_spatial_transformer": True,
    "legacy": False,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 48,
    "num_heads": 2,
    "num_head_channels": -1,
}
WAN = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "in_dim": 16,
    "dim": 128,
    "ffn_dim": 128,
    "freq_dim": 64,
    "text_dim": 48,
    "num_heads": 1,
    "num_layers": 2,
    "out_dim": 16,
}
COSMOS2 = {
    "image_model": "cosmos_predict2",
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 128,
    "concat_padding_mask": True,
    "crossattn_emb_channels": 48,
    "pos_emb_cls": "rope3d",
    "pos_emb_learnable": True,
    "pos_emb_interpolation": "crop",
    "min_fps": 1,
    "max_fps": 30,
    "use_adaln_lora": True,
    "adaln_lora_dim": 32,
    "num_blocks": 2,
    "num_heads": 2,
    "extra_per_block_abs_pos_emb": False,
    "rope_h_extrapolation_ratio": 4.0,
    "rope_w_extrapolation_ratio": 4.0,
    "rope_t_extrapolation_ratio": 1.0,
    "rope_enable_fps_modulation": False,
}
LUM = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 96,
    "cap_feat_dim": 48,
    "n_layers": 2,
    "qk_norm": True,
    "n_heads": 1,
    "n_kv_heads": 1,
    "axes_dims": [32, 32, 32],
    "axes_lens": [300, 512, 512],
    "rope_theta": 10000.0,
    "ffn_dim_multiplier": 4.0,
    "n_refiner_layers": 1,
}


FAMILIES = {
    "sd15": Tiny("SD15", UNET | {"adm_in_channels": None}, (4, 8, 8), 48),
    "sd2_v": Tiny(
        "SD20",
        UNET | {"use_linear_in_transformer": True},
        (4, 8, 8),
        48,
        plain,
        lambda c: base.BaseModel(c, model_type=base.ModelType.V_PREDICTION),
    ),
    "sdxl": Tiny(
        "SDXL",
        UNET | {"use_linear_in_transformer": True, "num_classes": "sequential", "adm_in_channels": 32 + 1536},
        (4, 8, 8),
        48,
        pooled(32),
    ),
    "sdxl_vpred_zsnr": Tiny(
        "SDXL",
        UNET | {"use_linear_in_transformer": True, "num_classes": "sequential", "adm_in_channels": 32 + 1536},
        (4, 8, 8),
        48,
        pooled(32),
        zero_terminal,
    ),
    "sd3": Tiny(
        "SD3",
        {
            "in_channels": 16,
            "patch_size": 2,
            "out_channels": 16,
            "depth": 2,
            "input_size": None,
            "adm_in_channels": 32,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": 48, "out_features": 128},
            },
            "num_patches": 256,
            "pos_embed_max_size": 16,
            "pos_embed_scaling_factor": None,
        },
        (16, 8, 8),
        48,
        pooled(32),
    ),
    "sd35_medium": Tiny(
        "SD3",
        {
            "in_channels": 16,
            "patch_size": 2,
            "out_channels": 16,
            "depth": 2,
            "input_size": None,
            "adm_in_channels": 32,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": 48, "out_features": 128},
            },
            "num_patches": 256,
            "pos_embed_max_size": 16,
            "pos_embed_scaling_factor": None,
            "qk_norm": "rms",
            "x_block_self_attn_layers": [0],
        },
        (16, 8, 8),
        48,
        pooled(32),
    ),
    "flux_dev": Tiny("Flux", FLUX, (16, 8, 8), 48, pooled(32)),
    "flux_schnell": Tiny("FluxSchnell", FLUX | {"guidance_embed": False}, (16, 8, 8), 48, pooled(32)),
    "flux_kontext": Tiny(
        "Flux",
        FLUX,
        (16, 8, 8),
        48,
        lambda g, n: pooled(32)(g, n) | {"reference_latents": [torch.randn(1, 16, 8, 8, generator=g)]},
    ),
    "flux_fill": Tiny(
        "FluxInpaint",
        FLUX | {"in_channels": 96},
        (16, 8, 8),
        48,
        lambda g, n: (
            pooled(32)(g, n)
            | {
                "concat_latent_image": torch.randn(1, 16, 8, 8, generator=g),
                "concat_mask": torch.ones(1, 1, 64, 64),
            }
        ),
    ),
    "flux2": Tiny(
        "Flux2",
        FLUX
        | {
            "image_model": "flux2",
            "in_channels": 128,
            "out_channels": 128,
            "axes_dim": [32, 32, 32, 32],
            "mlp_ratio": 3.0,
            "theta": 2000,
            "global_modulation": True,
            "mlp_silu_act": True,
            "qkv_bias": False,
            "ops_bias": False,
            "default_ref_method": "index",
            "ref_index_scale": 10.0,
            "txt_ids_dims": [3],
            "patch_size": 1,
            "vec_in_dim": None,
        },
        (128, 4, 4),
        48,
    ),
    "flux2_klein": Tiny(
        "Flux2",
        FLUX
        | {
            "image_model": "flux2",
            "in_channels": 128,
            "out_channels": 128,
            "axes_dim": [32, 32, 32, 32],
            "mlp_ratio": 3.0,
            "theta": 2000,
            "global_modulation": True,
            "mlp_silu_act": True,
            "qkv_bias": False,
            "ops_bias": False,
            "default_ref_method": "index",
            "ref_index_scale": 10.0,
            "txt_ids_dims": [3],
            "patch_size": 1,
            "vec_in_dim": None,
            "guidance_embed": False,
        },
        (128, 4, 4),
        48,
    ),
    "flux2_edit": Tiny(
        "Flux2",
        FLUX
        | {
            "image_model": "flux2",
            "in_channels": 128,
            "out_channels": 128,
            "axes_dim": [32, 32, 32, 32],
            "mlp_ratio": 3.0,
            "theta": 2000,
            "global_modulation": True,
            "mlp_silu_act": True,
            "qkv_bias": False,
            "ops_bias": False,
            "default_ref_method": "index",
            "ref_index_scale": 10.0,
            "txt_ids_dims": [3],
            "patch_size": 1,
            "vec_in_dim": None,
        },
        (128, 4, 4),
        48,
        lambda g, n: {"reference_latents": [torch.randn(1, 128, 4, 4, generator=g)]},
    ),
    "longcat": Tiny(
        "LongCatImage",
        FLUX | {"vec_in_dim": None, "guidance_embed": False, "txt_ids_dims": [1, 2]},
        (16, 8, 8),
        48,
    ),
    "chroma": Tiny(
        "Chroma",
        {
            "image_model": "chroma",
            "in_channels": 64,
            "out_channels": 64,
            "context_in_dim": 48,
            "hidden_size": 128,
            "mlp_ratio": 4.0,
            "num_heads": 1,
            "depth": 1,
            "depth_single_blocks": 2,
            "axes_dim": [16, 56, 56],
            "theta": 10000,
            "patch_size": 2,
            "qkv_bias": True,
            "in_dim": 64,
            "out_dim": 128,
            "hidden_dim": 64,
            "n_layers": 2,
            "txt_ids_dims": [],
            "vec_in_dim": None,
        },
        (16, 8, 8),
        48,
    ),
    "chroma_radiance": Tiny(
        "ChromaRadiance",
        {
            "image_model": "chroma_radiance",
            "in_channels": 3,
            "out_channels": 3,
            "context_in_dim": 48,
            "hidden_size": 128,
            "mlp_ratio": 4.0,
            "num_heads": 1,
            "depth": 1,
            "depth_single_blocks": 2,
            "axes_dim": [16, 56, 56],
            "theta": 10000,
            "patch_size": 16,
            "qkv_bias": True,
            "in_dim": 64,
            "out_dim": 128,
            "hidden_dim": 64,
            "n_layers": 2,
            "txt_ids_dims": [],
            "vec_in_dim": None,
            "nerf_hidden_size": 16,
            "nerf_mlp_ratio": 2,
            "nerf_depth": 2,
            "nerf_max_freqs": 4,
            "nerf_tile_size": 512,
            "nerf_final_head_type": "conv",
            "nerf_embedder_dtype": torch.float32,
            "use_x0": False,
            "use_sequential_txt_ids": False,
        },
        (3, 32, 32),
        48,
    ),
    "qwen_image": Tiny(
        "QwenImage",
        {
            "image_model": "qwen_image",
            "in_channels": 64,
            "num_layers": 2,
            "num_attention_heads": 1,
            "joint_attention_dim": 48,
        },
        (16, 1, 8, 8),
        48,
    ),
    "qwen_edit": Tiny(
        "QwenImage",
        {
            "image_model": "qwen_image",
            "in_channels": 64,
            "num_layers": 2,
            "num_attention_heads": 1,
            "joint_attention_dim": 48,
        },
        (16, 1, 8, 8),
        48,
        lambda g, n: {"reference_latents": [torch.randn(1, 16, 1, 8, 8, generator=g)]},
    ),
    "z_image": Tiny(
        "ZImage",
        LUM
        | {
            "axes_dims": [32, 48, 48],
            "dim": 256,
            "n_heads": 2,
            "n_kv_heads": 2,
            "rope_theta": 256.0,
            "ffn_dim_multiplier": 8 / 3,
            "z_image_modulation": True,
            "time_scale": 1000.0,
            "pad_tokens_multiple": 32,
        },
        (16, 8, 8),
        48,
    ),
    "lumina2": Tiny(
        "Lumina2", LUM, (16, 8, 8), 48, lambda g, n: {"attention_mask": torch.ones(1, n, dtype=torch.long)}
    ),
    "auraflow": Tiny(
        "AuraFlow",
        {
            "max_seq": 1024,
            "cond_seq_dim": 48,
            "n_double_layers": 1,
            "n_layers": 2,
            "dim": 128,
            "n_heads": 2,
            "global_conddim": 128,
        },
        (4, 8, 8),
        48,
    ),
    "pixart_sigma": Tiny(
        "PixArtSigma",
        {
            "image_model": "pixart_sigma",
            "num_heads": 2,
            "patch_size": 2,
            "hidden_size": 64,
            "in_channels": 4,
            "depth": 2,
            "model_max_length": 16,
            "input_size": 128,
            "pe_interpolation": 1,
            "micro_condition": False,
            "caption_channels": 48,
        },
        (4, 64, 64),
        48,
    ),
    "hydit": Tiny(
        "HunyuanDiT",
        {
            "image_model": "hydit",
            "depth": 4,
            "hidden_size": 64,
            "num_heads": 1,
            "input_size": None,
            "text_states_dim": 48,
            "text_states_dim_t5": 48,
            "size_cond": False,
            "use_style_cond": False,
            "learn_sigma": True,
        },
        (4, 8, 8),
        48,
        lambda g, n: {
            "attention_mask": torch.ones(1, 77),
            "conditioning_mt5xl": torch.randn(1, 256, 48, generator=g),
            "attention_mask_mt5xl": torch.ones(1, 256),
            FIXED: 77,
        },
    ),
    "hidream": Tiny(
        "HiDream",
        {
            "image_model": "hidream",
            "attention_head_dim": 128,
            "axes_dims_rope": [64, 32, 32],
            "caption_channels": [48, 48],
            "max_resolution": [128, 128],
            "in_channels": 16,
            "llama_layers": [0, 1, 1],
            "num_attention_heads": 1,
            "num_routed_experts": 2,
            "num_activated_experts": 1,
            "num_layers": 1,
            "num_single_layers": 1,
            "out_channels": 16,
            "patch_size": 2,
            "text_emb_dim": 32,
        },
        (16, 8, 8),
        48,
        lambda g, n: pooled(32)(g, n) | {"conditioning_llama3": torch.randn(1, 2, n, 48, generator=g)},
    ),
    "hunyuan_video": Tiny("HunyuanVideo", HUN, (16, 1, 8, 8), 48, pooled(768)),
    "hunyuan_i2v": Tiny(
        "HunyuanVideoI2V",
        HUN | {"in_channels": 33},
        (16, 2, 8, 8),
        48,
        lambda g, n: (
            pooled(768)(g, n)
            | {
                "concat_latent_image": torch.randn(1, 16, 1, 8, 8, generator=g),
                "concat_mask": torch.cat([torch.zeros(1, 1, 1, 8, 8), torch.ones(1, 1, 1, 8, 8)], 2),
            }
        ),
    ),
    "hunyuan_i2v_noimg": Tiny("HunyuanVideoI2V", HUN | {"in_channels": 33}, (16, 2, 8, 8), 48, pooled(768)),
    "hunyuan_video15": Tiny(
        "HunyuanVideo15",
        HUN
        | {
            "vec_in_dim": None,
            "in_channels": 65,
            "out_channels": 32,
            "patch_size": [1, 1, 1],
            "guidance_embed": False,
            "byt5": False,
            "use_cond_type_embedding": True,
            "vision_in_dim": 48,
            "meanflow_sum": True,
        },
        (32, 1, 4, 4),
        48,
        lambda g, n: {"pooled_output": torch.zeros(1, 768)},
    ),
    "hunyuan_image21": Tiny(
        "HunyuanImage21",
        HUN
        | {
            "vec_in_dim": None,
            "in_channels": 64,
            "out_channels": 64,
            "patch_size": [1, 1],
            "axes_dim": [64, 64],
            "guidance_embed": False,
        },
        (64, 4, 4),
        48,
    ),
    "wan21_t2v": Tiny("WAN21_T2V", WAN, (16, 1, 8, 8), 48),
    "wan21_i2v": Tiny(
        "WAN21_I2V",
        WAN | {"model_type": "i2v", "in_dim": 36},
        (16, 2, 8, 8),
        48,
        lambda g, n: {
            "concat_latent_image": torch.randn(1, 16, 2, 8, 8, generator=g),
            "concat_mask": torch.cat([torch.zeros(1, 1, 1, 8, 8), torch.ones(1, 1, 1, 8, 8)], 2),
            "clip_vision_output": vision(g),
        },
    ),
    "wan22_i2v_14b": Tiny(
        "WAN21_I2V",
        WAN | {"model_type": "t2v", "in_dim": 36},
        (16, 2, 8, 8),
        48,
        lambda g, n: {
            "concat_latent_image": torch.randn(1, 16, 2, 8, 8, generator=g),
            "concat_mask": torch.cat([torch.zeros(1, 4, 1, 8, 8), torch.ones(1, 4, 1, 8, 8)], 2),
        },
        lambda c: base.WAN21(c, image_to_video=True),
    ),
    "wan22_5b": Tiny("WAN22_T2V", WAN | {"in_dim": 48, "out_dim": 48}, (48, 1, 4, 4), 48),
    "wan22_5b_i2v": Tiny("WAN22_T2V", WAN | {"in_dim": 48, "out_dim": 48}, (48, 3, 4, 4), 48, given=True),
    "wan21_vace": Tiny(
        "WAN21_Vace",
        WAN | {"model_type": "vace", "vace_layers": 1, "vace_in_dim": 96},
        (16, 1, 8, 8),
        48,
        lambda g, n: {
            "vace_frames": [torch.randn(1, 32, 1, 8, 8, generator=g)],
            "vace_mask": [torch.ones(1, 64, 1, 8, 8)],
            "vace_strength": [1.0],
        },
    ),
    "ltxv": Tiny(
        "LTXV",
        {
            "image_model": "ltxv",
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "cross_attention_dim": 32,
            "caption_channels": 48,
        },
        (128, 2, 4, 4),
        48,
        lambda g, n: {"attention_mask": torch.ones(1, n, dtype=torch.long), "frame_rate": 25},
    ),
    "ltxv_i2v": Tiny(
        "LTXV",
        {
            "image_model": "ltxv",
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "cross_attention_dim": 32,
            "caption_channels": 48,
        },
        (128, 3, 4, 4),
        48,
        lambda g, n: {"attention_mask": torch.ones(1, n, dtype=torch.long), "frame_rate": 25},
        given=True,
    ),
    "ltx2_av_video_only": Tiny(
        "LTXAV",
        {
            "image_model": "ltxav",
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "cross_attention_dim": 32,
            "audio_cross_attention_dim": 32,
            "audio_attention_head_dim": 16,
            "audio_num_attention_heads": 2,
            "caption_channels": 48,
        },
        (128, 2, 4, 4),
        96,
        lambda g, n: {"frame_rate": 25},
    ),
    "cosmos1": Tiny(
        "CosmosT2V",
        {
            "image_model": "cosmos",
            "max_img_h": 240,
            "max_img_w": 240,
            "max_frames": 128,
            "in_channels": 16,
            "out_channels": 16,
            "patch_spatial": 2,
            "patch_temporal": 1,
            "model_channels": 128,
            "block_config": "FA-CA-MLP",
            "concat_padding_mask": True,
            "pos_emb_cls": "rope3d",
            "pos_emb_learnable": False,
            "pos_emb_interpolation": "crop",
            "block_x_format": "THWBD",
            "affline_emb_norm": True,
            "use_adaln_lora": True,
            "adaln_lora_dim": 32,
            "num_blocks": 2,
            "num_heads": 2,
            "crossattn_emb_channels": 48,
            "extra_per_block_abs_pos_emb": True,
            "extra_per_block_abs_pos_emb_type": "learnable",
        },
        (16, 1, 8, 8),
        48,
        lambda g, n: {"frame_rate": 24},
    ),
    "cosmos_predict2": Tiny("CosmosT2IPredict2", COSMOS2, (16, 1, 8, 8), 48),
    "anima": Tiny(
        "Anima",
        COSMOS2 | {"image_model": "anima", "crossattn_emb_channels": 1024},
        (16, 1, 8, 8),
        1024,
        lambda g, n: {
            "t5xxl_ids": torch.randint(0, 100, (5,), generator=g, dtype=torch.int),
            "t5xxl_weights": torch.ones(5),
        },
    ),
    "anima_noids": Tiny(
        "Anima", COSMOS2 | {"image_model": "anima", "crossattn_emb_channels": 1024}, (16, 1, 8, 8), 1024
    ),
    "mochi": Tiny(
        "GenmoMochi",
        {
            "image_model": "mochi_preview",
            "depth": 2,
            "patch_size": 2,
            "num_heads": 2,
            "hidden_size_x": 128,
            "hidden_size_y": 64,
            "mlp_ratio_x": 96.0,
            "mlp_ratio_y": 4.0,
            "learn_sigma": False,
            "in_channels": 12,
            "qk_norm": True,
            "qkv_bias": False,
            "out_bias": True,
            "attn_drop": 0.0,
            "patch_embed_bias": True,
            "posenc_preserve_area": True,
            "timestep_mlp_bias": True,
            "attend_to_padding": False,
            "timestep_scale": 1000.0,
            "use_t5": True,
            "t5_feat_dim": 48,
            "t5_token_length": 16,
            "rope_theta": 10000.0,
        },
        (12, 1, 8, 8),
        48,
        lambda g, n: {"attention_mask": torch.ones(1, n, dtype=torch.long)},
    ),
    "cogvideox": Tiny(
        "CogVideoX_T2V",
        {
            "image_model": "cogvideox",
            "num_attention_heads": 1,
            "time_embed_dim": 64,
            "text_embed_dim": 48,
            "num_layers": 2,
            "use_rotary_positional_embeddings": True,
        },
        (16, 1, 8, 8),
        48,
    ),
    "cascade_c": Tiny(
        "Stable_Cascade_C",
        {
            "stable_cascade_stage": "c",
            "c_cond": 64,
            "c_hidden": [64, 64],
            "nhead": [2, 2],
            "blocks": [[1, 1], [1, 1]],
            "c_clip_text": 48,
            "c_clip_text_pooled": 32,
        },
        (16, 8, 8),
        48,
        lambda g, n: {"pooled_output": torch.randn(1, 1, 32, generator=g)},
    ),
    "omnigen2": Tiny(
        "Omnigen2",
        {
            "image_model": "omnigen2",
            "axes_dim_rope": [40, 40, 40],
            "axes_lens": [1024, 1664, 1664],
            "ffn_dim_multiplier": None,
            "hidden_size": 120,
            "in_channels": 16,
            "multiple_of": 32,
            "norm_eps": 1e-5,
            "num_attention_heads": 1,
            "num_kv_heads": 1,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "out_channels": None,
            "patch_size": 2,
            "text_feat_dim": 48,
            "timestep_scale": 1000.0,
        },
        (16, 8, 8),
        48,
        lambda g, n: {"attention_mask": torch.ones(1, n, dtype=torch.long)},
    ),
    "omnigen2_edit": Tiny(
        "Omnigen2",
        {
            "image_model": "omnigen2",
            "axes_dim_rope": [40, 40, 40],
            "axes_lens": [1024, 1664, 1664],
            "ffn_dim_multiplier": None,
            "hidden_size": 120,
            "in_channels": 16,
            "multiple_of": 32,
            "norm_eps": 1e-5,
            "num_attention_heads": 1,
            "num_kv_heads": 1,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "out_channels": None,
            "patch_size": 2,
            "text_feat_dim": 48,
            "timestep_scale": 1000.0,
        },
        (16, 8, 8),
        48,
        lambda g, n: {
            "attention_mask": torch.ones(1, n, dtype=torch.long),
            "reference_latents": [torch.randn(1, 16, 8, 8, generator=g)],
        },
    ),
    "boogu": Tiny(
        "Boogu",
        {
            "image_model": "boogu",
            "hidden_size": 120,
            "num_layers": 2,
            "num_double_stream_layers": 1,
            "num_refiner_layers": 1,
            "instruction_feat_dim": 48,
            "num_attention_heads": 1,
            "num_kv_heads": 1,
            "multiple_of": 32,
        },
        (16, 8, 8),
        48,
        lambda g, n: {"attention_mask": torch.ones(1, n, dtype=torch.long)},
    ),
    "ideogram4": Tiny(
        "Ideogram4",
        {
            "image_model": "ideogram4",
            "in_channels": 128,
            "num_layers": 2,
            "num_attention_heads": 1,
            "attention_head_dim": 256,
            "intermediate_size": 64,
            "adaln_dim": 32,
            "llm_features_dim": 48,
            "rope_theta": 5000000,
            "mrope_section": (24, 20, 20),
        },
        (128, 4, 4),
        48,
        lambda g, n: {"attention_mask": torch.ones(1, n, dtype=torch.long)},
    ),
    "krea2": Tiny(
        "Krea2",
        {
            "image_model": "krea2",
            "features": 128,
            "channels": 16,
            "patch": 2,
            "layers": 2,
            "heads": 1,
            "kvheads": 1,
            "txtlayers": 2,
            "txtdim": 64,
            "txtheads": 1,
            "txtkvheads": 1,
        },
        (16, 1, 8, 8),
        128,
    ),
    "mage_flow": Tiny(
        "MageFlow",
        {
            "image_model": "mage_flow",
            "in_channels": 128,
            "num_layers": 2,
            "num_attention_heads": 1,
            "joint_attention_dim": 48,
        },
        (128, 4, 4),
        48,
    ),
    "joyimage": Tiny(
        "JoyImage",
        {
            "image_model": "joyimage",
            "in_channels": 16,
            "hidden_size": 128,
            "patch_size": [1, 2, 2],
            "num_layers": 2,
            "num_attention_heads": 1,
            "text_dim": 48,
            "theta": 10000,
            "rope_dim_list": [16, 56, 56],
        },
        (16, 1, 8, 8),
        48,
    ),
    "kandinsky5_image": Tiny(
        "Kandinsky5Image",
        {
            "image_model": "kandinsky5",
            "model_dim": 128,
            "axes_dims": (32, 48, 48),
            "rope_scale_factor": (1.0, 1.0, 1.0),
            "time_dim": 64,
            "ff_dim": 128,
            "visual_embed_dim": 64,
            "num_text_blocks": 1,
            "num_visual_blocks": 2,
            "in_text_dim": 48,
            "in_text_dim2": 32,
        },
        (16, 8, 8),
        48,
        pooled(32),
    ),
    "kandinsky5_video": Tiny(
        "Kandinsky5",
        {
            "image_model": "kandinsky5",
            "model_dim": 128,
            "axes_dims": (32, 48, 48),
            "rope_scale_factor": (1.0, 1.0, 1.0),
            "time_dim": 64,
            "ff_dim": 128,
            "visual_embed_dim": 132,
            "num_text_blocks": 1,
            "num_visual_blocks": 2,
            "in_text_dim": 48,
            "in_text_dim2": 32,
        },
        (16, 2, 8, 8),
        48,
        pooled(32),
    ),
    "ernie": Tiny(
        "ErnieImage",
        {
            "image_model": "ernie",
            "hidden_size": 128,
            "num_attention_heads": 1,
            "num_layers": 2,
            "ffn_hidden_size": 64,
            "text_in_dim": 48,
        },
        (128, 4, 4),
        48,
    ),
    "lens": Tiny(
        "Lens",
        {
            "image_model": "lens",
            "in_channels": 128,
            "out_channels": 32,
            "num_layers": 2,
            "num_attention_heads": 1,
            "enc_hidden_dim": 48,
            "multi_layer_encoder_feature": False,
            "selected_layer_index": (0,),
        },
        (128, 4, 4),
        48,
    ),
    "pixeldit": Tiny(
        "PixelDiTT2I",
        {
            "image_model": "pixeldit_t2i",
            "num_groups": 2,
            "hidden_size": 64,
            "pixel_hidden_size": 16,
            "pixel_attn_hidden_size": 64,
            "pixel_num_groups": 2,
            "patch_depth": 2,
            "pixel_depth": 1,
            "txt_embed_dim": 48,
        },
        (3, 32, 32),
        48,
    ),
    "zimage_pixel": Tiny(
        "ZImagePixelSpace",
        LUM
        | {
            "image_model": "zimage_pixel",
            "axes_dims": [32, 48, 48],
            "dim": 256,
            "n_heads": 2,
            "n_kv_heads": 2,
            "rope_theta": 256.0,
            "ffn_dim_multiplier": 8 / 3,
            "z_image_modulation": True,
            "time_scale": 1000.0,
            "pad_tokens_multiple": 32,
            "patch_size": 8,
            "in_channels": 3,
            "decoder_in_channels": 192,
            "decoder_hidden_size": 32,
            "decoder_num_res_blocks": 1,
            "decoder_max_freqs": 2,
        },
        (3, 32, 32),
        48,
    ),
    "sdxl_inpaint": Tiny(
        "SDXL",
        UNET
        | {
            "in_channels": 9,
            "use_linear_in_transformer": True,
            "num_classes": "sequential",
            "adm_in_channels": 32 + 1536,
        },
        (4, 8, 8),
        48,
        pooled(32),
        inpaint,
    ),
    "svd": Tiny(
        "SVD_img2vid",
        UNET
        | {
            "in_channels": 8,
            "use_linear_in_transformer": True,
            "use_temporal_attention": True,
            "use_temporal_resblock": True,
            "video_kernel_size": [3, 1, 1],
            "extra_ff_mix_layer": True,
            "use_spatial_context": True,
            "merge_strategy": "learned_with_images",
            "merge_factor": 0.0,
            "num_classes": "sequential",
            "adm_in_channels": 768,
        },
        (4, 8, 8),
        48,
        lambda g, n: {"concat_latent_image": torch.randn(1, 4, 8, 8, generator=g)},
    ),
    "ace_step": Tiny(
        "ACEStep",
        {
            "audio_model": "ace",
            "attention_head_dim": 32,
            "in_channels": 8,
            "inner_dim": 64,
            "max_height": 16,
            "max_position": 3276,
            "max_width": 3276,
            "mlp_ratio": 2.5,
            "num_attention_heads": 2,
            "num_layers": 2,
            "out_channels": 8,
            "patch_size": [16, 1],
            "rope_theta": 1e6,
            "speaker_embedding_dim": 512,
            "text_embedding_dim": 48,
            "ssl_encoder_depths": [2, 2],
            "ssl_latent_dims": [32, 32],
            "ssl_names": ["mert", "m-hubert"],
            "lyric_encoder_vocab_size": 50,
            "lyric_hidden_size": 1024,
        },
        (8, 16, 16),
        48,
        lambda g, n: {"conditioning_lyrics": torch.zeros(1, 4, dtype=torch.long)},
    ),
    "hidream_o1": Tiny(
        "HiDreamO1",
        {
            "image_model": "hidream_o1",
            "text_config_overrides": {
                "hidden_size": 64,
                "intermediate_size": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
                "num_key_value_heads": 1,
                "vocab_size": 100,
            },
            "vision_config_overrides": {
                "depth": 1,
                "hidden_size": 64,
                "num_heads": 1,
                "intermediate_size": 64,
            },
        },
        (3, 64, 64),
        48,
    ),
    "stable_audio": Tiny(
        "StableAudio",
        {
            "audio_model": "dit1.0",
            "global_cond_dim": 1536,
            "cond_token_dim": 768,
            "project_cond_tokens": True,
            "embed_dim": 64,
            "depth": 2,
            "num_heads": 1,
            "io_channels": 64,
        },
        (64, 32),
        768,
        plain,
        lambda c: base.StableAudio1(
            c,
            comfy.ldm.audio.embedders.NumberConditioner(768, 0, 512).state_dict(),
            comfy.ldm.audio.embedders.NumberConditioner(768, 0, 512).state_dict(),
        ),
    ),
}


def random_like(name: str, weight: Tensor, g: Generator) -> Tensor:
    """Weights that keep the size of what goes through: norms near one, the rest drawn by its fan-in."""
    noise = torch.randn(weight.shape, generator=g)
    if weight.ndim == 0:
        return torch.ones_like(weight)
    if weight.ndim == 1:
        norm = "norm" in name or "ln_" in name or name.endswith("scale")
        return 0.02 * noise + (1.0 if norm and not name.endswith("bias") else 0.0)
    return noise / max(weight[0].numel() if len(weight) else 1, 1) ** 0.5


def build(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A MODEL of the family, made as the host's loader makes it: under inference mode."""
    tiny = FAMILIES[name]
    with torch.inference_mode():
        model = known(tiny, dict(tiny.unet), dtype)
        fill(model.diffusion_model, tiny.config, torch.Generator().manual_seed(seed))
        model.eval()
        cpu = torch.device("cpu")
        return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def known(tiny: Tiny, unet: Options, dtype: torch.dtype) -> Any:
    """The host's model of these sizes, less those that this version does not know."""
    config = getattr(supported, tiny.config)(dict(unet))
    config.unet_config.update(unet)
    config.sampling_settings = dict(config.sampling_settings)
    config.set_inference_dtype(dtype, None)
    try:
        return tiny.make(config) if tiny.make else config.get_model({}, "", device="cpu")
    except TypeError as error:
        _, told, strange = str(error).partition("unexpected keyword argument ")
        if not told or strange.strip("'") not in unet:
            raise
    return known(tiny, {k: v for k, v in unet.items() if k != strange.strip("'")}, dtype)


def fill(network: Any, config: str, generator: Generator) -> None:
    """Give a network random weights; tables that it computes itself stay."""
    buffers = {name for name, _ in network.named_buffers()}
    for name, weight in network.state_dict().items():
        own = name in buffers and not ("pos_embed" in name and config == "SD3")
        if weight.is_floating_point() and not own:
            weight.copy_(random_like(name, weight.float(), generator).to(weight.dtype))


def captions(name: str, lengths: tuple[int, ...], generator: Generator) -> list[Any]:
    """A CONDITIONING entry for each length."""
    tiny, out = FAMILIES[name], []
    for length in lengths:
        options = tiny.options(generator, length)
        tokens = options.pop(FIXED, length)
        out.append([torch.randn(1, tokens, tiny.width, generator=generator), options])
    return out


def data(name: str, n: int = 2) -> tuple[Options, list[Any], list[Any]]:
    """A LATENT, captions of different lengths, and a shorter one that stands for the empty text."""
    g = torch.Generator().manual_seed(1)
    tiny = FAMILIES[name]
    latent: Options = {"samples": torch.randn(n, *tiny.latent, generator=g)}
    if tiny.given:  # as Wan22ImageToVideoLatent has it
        latent["noise_mask"] = torch.ones(1, 1, *tiny.latent[1:])
        latent["noise_mask"][:, :, 0] = 0
    *own, empty = captions(name, (*((3, 5)[i % 2] for i in range(n)), 2), g)
    return latent, own, empty
