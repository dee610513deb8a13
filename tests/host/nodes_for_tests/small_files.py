"""Model files for the host's stock loaders, of a size for tests: what a shipped workflow names, with random weights.

The loaders, their detection, the tokenizers and all that runs is the host's. What it takes as given of a size (text
encoders, the width of Wan's autoencoder, SDXL's depths, in older versions Flux's) is made small here, for the whole
host that has these nodes.
"""

import importlib.util
import io
import json
import sys
from functools import wraps
from pathlib import Path

import comfy.ldm.models.autoencoder
import comfy.ldm.modules.diffusionmodules.model
import comfy.ldm.wan.vae
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import folder_paths
import torch
from comfy import model_detection
from comfy.clip_model import CLIPTextModel
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.taesd.taesd import TAESD
from comfy.text_encoders import llama, qwen_vl
from comfy.text_encoders.t5 import T5
from safetensors.torch import load_file, save_file

from . import tiny_models
from .scene_nodes import tiny_families

families = tiny_families()
ROOT = Path(__file__).resolve().parents[3]
DEMO = ROOT / "demo" / "model"
COMFY = Path(comfy.sd1_clip.__file__).parent
CLIP = {"hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 64, "num_hidden_layers": 3}
SMALL = {
    "clip_text_model": CLIP,
    "t5": {"num_layers": 1, "num_heads": 1, "d_kv": 64, "d_ff": 64},
    "umt5": {"num_layers": 1, "num_heads": 1, "d_kv": 64, "d_ff": 64, "vocab_size": 1000},
}
"""What is changed of the host's text encoders, by the type that their config names."""
QWEN = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 28, "num_attention_heads": 1,
    "num_key_value_heads": 1,
}  # fmt: skip
"""Of Qwen 3 and 2.5, whose config is in the host's code: layers enough for Flux.2 Klein, which reads three of them."""
GEMMA = QWEN | {"num_hidden_layers": 2, "vocab_size": 1000}
"""Of Gemma 3, all of whose layers LTX-2 reads."""
GEMMA_VISION = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1, "num_hidden_layers": 1,
                "image_size": 224}  # fmt: skip
VISION = {"hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "num_layers": 1}
CONTEXT, POOLED = 4096, 64
VAE_WIDTH = 16
MARK = "small."
"""Begins the name of a tensor that says what a text encoder is; the host goes by sizes."""
Z_IMAGE_DIM = 256


# -- what the host is told -------------------------------------------------------------------------


CODED = {llama.Gemma3_12B: GEMMA} if hasattr(llama, "Gemma3_12B") else {}
"""Sizes of encoders whose config is in the host's code, where they are not those of Qwen."""


def small_text_encoders():
    """Text encoders are built with few layers."""
    if hasattr(llama, "Gemma3_12B_Config"):
        own = llama.Gemma3_12B_Config
        own.vision_config = getattr(own, "vision_config", {}) | GEMMA_VISION
    cls = comfy.sd1_clip.SDClipModel
    build = cls.__init__

    @wraps(build)
    def small(self, *args, textmodel_json_config=None, **kwargs):
        own = CODED.get(kwargs.get("model_class"), QWEN)
        config = own if textmodel_json_config == {} else text_config(textmodel_json_config)
        build(self, *args, textmodel_json_config=dict(config), **kwargs)

    cls.__init__ = small
    detect = comfy.sd.detect_te_model

    @wraps(detect)
    def told(state_dict):
        (kind, *_) = [name for name in state_dict if name.startswith(MARK)] or [""]
        return getattr(comfy.sd.TEModel, kind.removeprefix(MARK)) if kind else detect(state_dict)

    comfy.sd.detect_te_model = told
    built_with(qwen_vl.Qwen2VLVisionTransformer, lambda given: given | VISION)


def built_with(cls, change):
    """Let a class of the host be built with other named arguments: `change` gets those given."""
    build = cls.__init__
    cls.__init__ = wraps(build)(lambda self, *args, **given: build(self, *args, **change(given)))


def text_config(given=None):
    """The small form of a config that the host gives by its path; None is that of CLIP-L."""
    path = Path(given or COMFY / "sd1_clip_config.json")
    config = json.loads(path.read_text())
    return config | SMALL[config["model_type"]]


def narrow_autoencoders():
    """Those of Wan and of Flux.2 are built narrow; the host knows one width, of Flux.2's encoder at least."""
    built_with(comfy.ldm.wan.vae.WanVAE, lambda given: given | {"dim": VAE_WIDTH})
    encoder = comfy.ldm.modules.diffusionmodules.model.Encoder
    built_with(encoder, lambda given: given | ({"ch": 32} if given["z_channels"] == 32 else {}))


def detect_small_networks():
    """Networks of the sizes that their weights have, and an SDXL of two levels."""
    detect = model_detection.detect_unet_config

    @wraps(detect)
    def told(state_dict, prefix, *args, **kwargs):
        config = detect(state_dict, prefix, *args, **kwargs)
        kind = "" if config is None else config.get("image_model")
        if kind in ("flux", "flux2"):
            hidden = len(state_dict[f"{prefix}img_in.weight"])
            context = state_dict[f"{prefix}txt_in.weight"].shape[1]
            config |= {"hidden_size": hidden, "num_heads": hidden // 128, "context_in_dim": context}
        if kind == "qwen_image":
            hidden, context = state_dict[f"{prefix}txt_in.weight"].shape
            config |= {"num_attention_heads": hidden // 128, "joint_attention_dim": context}
        if kind == "lumina2" and config["dim"] == Z_IMAGE_DIM:
            config |= families.FAMILIES["z_image"].unet | {"cap_feat_dim": config["cap_feat_dim"]}
        return config

    model_detection.detect_unet_config = told
    comfy.supported_models.models.insert(0, SmallSDXL)
    if hasattr(comfy.supported_models, "ZImage"):
        own = {"unet_config": {"image_model": "lumina2", "dim": Z_IMAGE_DIM}}
        comfy.supported_models.models.insert(0, type("SmallZImage", (comfy.supported_models.ZImage,), own))


class SmallSDXL(comfy.supported_models.SDXL):
    """SDXL with fewer and narrower layers."""

    unet_config = {  # noqa: RUF012
        "model_channels": 64, "use_linear_in_transformer": True, "transformer_depth": [0, 0, 1, 1],
        "context_dim": 2 * POOLED, "adm_in_channels": POOLED + 6 * 256, "use_temporal_attention": False,
    }  # fmt: skip


small_text_encoders()
narrow_autoencoders()
detect_small_networks()


# -- files -----------------------------------------------------------------------------------------


def weights(network, seed=0):
    """Random weights for a network's parameters."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {k: tiny_models.random_like(k, w, generator) for k, w in network.state_dict().items()}
    return {name: weight.contiguous() for name, weight in drawn.items()}


def prefixed(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def clip_l():
    network = CLIPTextModel(text_config(), torch.float32, "cpu", comfy.ops.disable_weight_init)
    return weights(network) | {
        "text_model.encoder.layers.1.mlp.fc1.weight": torch.zeros(CLIP["hidden_size"], 64)
    }


def clip_g():
    path = COMFY / "clip_config_bigg.json"
    network = CLIPTextModel(text_config(path), torch.float32, "cpu", comfy.ops.disable_weight_init)
    # By this layer the host tells it from CLIP-L; it loads none that it does not have.
    return weights(network, 1) | {"text_model.encoder.layers.30.mlp.fc1.weight": torch.zeros(1)}


def t5xxl(config="t5_config_xxl.json"):
    config = text_config(COMFY / "text_encoders" / config)
    network = T5(config, torch.float32, "cpu", comfy.ops.disable_weight_init)
    drawn = {name: weight.half() for name, weight in weights(network, 2).items()}
    # By the shape of this layer the host tells it from smaller ones; it loads none that it does not have.
    told = torch.zeros(10240, 4096, dtype=torch.uint8)
    return drawn | {"encoder.block.23.layer.1.DenseReluDense.wi_1.weight": told}


def umt5xxl():
    return t5xxl("umt5_config_xxl.json") | {"spiece_model": sentence_pieces()}


def sentence_pieces(unknown=2, begin=-1):
    """A tokenizer of the words of the demo's captions; ids of unknown pieces and of the beginning, -1: none."""
    import sentencepiece

    captions = [path.read_text().strip() for path in sorted((ROOT / "demo" / "data").glob("*.txt"))]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions), model_writer=model, vocab_size=150, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=unknown, bos_id=begin, minloglevel=2,
    )  # fmt: skip
    return torch.ByteTensor(list(model.getvalue()))


def flux():
    return tiny_models.state_dict("flux", 0, context=CONTEXT, pooled=POOLED)


def wan():
    return tiny_models.state_dict("wan", 0)


def family(name, seed=0, **sizes):
    """The weights of one of `tiny_families.FAMILIES`, some of its sizes changed."""
    tiny = families.FAMILIES[name]
    model = families.known(tiny, tiny.unet | sizes, torch.float32)
    return weights(model.diffusion_model, seed)


def wan_high():
    return tiny_models.state_dict("wan", 1)


def wan_i2v():
    return family("wan22_i2v_14b", text_dim=CONTEXT, freq_dim=256)


def wan_i2v_low():
    return family("wan22_i2v_14b", 1, text_dim=CONTEXT, freq_dim=256)


def klein():
    return family("flux2_klein", context_in_dim=3 * QWEN["hidden_size"])


def z_image():
    return family("z_image", cap_feat_dim=QWEN["hidden_size"])


def qwen_edit():
    return family("qwen_edit", joint_attention_dim=QWEN["hidden_size"])


def text_network(cls, mark, sizes=QWEN):
    """A text encoder of the host's `llama`, as `TEModel` names it."""
    network = cls(dict(sizes), torch.float32, "cpu", comfy.ops.disable_weight_init)
    drawn = {name: weight.half() for name, weight in weights(network, 4).items()}
    return drawn | {MARK + mark: torch.zeros(1)}


def qwen3_4b():
    return text_network(llama.Qwen3_4B, "QWEN3_4B")


def qwen25_7b():
    return text_network(llama.Qwen25_7BVLI, "QWEN25_7B")


LTX2 = {"caption_channels": 96, "connector_attention_head_dim": 16, "connector_num_attention_heads": 6,
        "connector_num_layers": 1}  # fmt: skip
"""Captions are not as wide as what attends to them for video and for sound together (64 here): by that width the host
would take an encoder's output for one that went through the connectors."""
LTX_VAE = {
    "dims": 3, "in_channels": 3, "out_channels": 3, "latent_channels": 128, "patch_size": 4,
    "blocks": [
        ["res_x", 1], ["compress_all", 1], ["res_x_y", 1], ["compress_all", 1], ["res_x_y", 1], ["compress_all", 1],
        ["res_x", 1],
    ],
    "norm_layer": "pixel_norm", "latent_log_var": "uniform", "encoder_base_channels": 16, "decoder_base_channels": 16,
}  # fmt: skip


def ltx2():
    """The network, the autoencoder, and the projection of the text encoder's layers, in one file."""
    from comfy.ldm.lightricks.vae.causal_video_autoencoder import VideoVAE

    vae = weights(VideoVAE(config=LTX_VAE), 1)
    vae["per_channel_statistics.std-of-means"] = torch.ones(128)
    vae["per_channel_statistics.mean-of-means"] = torch.zeros(128)
    layers = GEMMA["hidden_size"] * (GEMMA["num_hidden_layers"] + 1)
    projection = (
        torch.randn(LTX2["caption_channels"], layers, generator=torch.Generator().manual_seed(3))
        / layers**0.5
    )
    return (
        prefixed("model.diffusion_model.", family("ltx2_av_video_only", **LTX2))
        | prefixed("vae.", vae)
        | {"text_embedding_projection.aggregate_embed.weight": projection}
    )


def ltx2_config():
    """What its file says of its sizes."""
    transformer = families.FAMILIES["ltx2_av_video_only"].unet | LTX2
    return {"transformer": {k: v for k, v in transformer.items() if k != "image_model"}, "vae": LTX_VAE}


CONFIGS = {"ltx2": ltx2_config}
"""The config in a file's metadata, of those that have one."""


def gemma3_12b():
    return text_network(llama.Gemma3_12B, "GEMMA_3_12B", GEMMA) | {"spiece_model": sentence_pieces(3, 2)}


def flux2_vae():
    sizes = {"double_z": True, "z_channels": 32, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 32,
             "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
             "batch_norm_latent": True}  # fmt: skip
    drawn = weights(comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig=sizes, embed_dim=32))
    return drawn | {"bn.running_var": torch.ones_like(drawn["bn.running_var"])}


def wan_vae():
    return weights(
        comfy.ldm.wan.vae.WanVAE(
            z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
            temperal_downsample=[False, True, True], dropout=0.0,
        )
    )  # fmt: skip


def demo_vae():
    """The demo's autoencoder: sixteen channels, in the scale of SD3's."""
    path = ROOT / "demo" / "make" / "export_comfyui.py"
    spec = importlib.util.spec_from_file_location("export_comfyui", path)
    export = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(export)
    return export.comfyui_vae(DEMO / "vae")


def sdxl():
    network = UNetModel(
        image_size=32, in_channels=4, out_channels=4, model_channels=64, channel_mult=[1, 2],
        num_res_blocks=[2, 2], transformer_depth=[0, 0, 1, 1], transformer_depth_output=[0, 0, 0, 1, 1, 1],
        transformer_depth_middle=1, context_dim=2 * POOLED, num_head_channels=64, use_spatial_transformer=True,
        use_linear_in_transformer=True, num_classes="sequential", adm_in_channels=POOLED + 6 * 256, legacy=False,
        dtype=torch.float32, operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    return (
        prefixed("model.diffusion_model.", weights(network))
        | prefixed("conditioner.embedders.0.transformer.", clip_l())
        | prefixed("conditioner.embedders.1.model.transformer.", clip_g())
        | prefixed("first_stage_model.", weights(TAESD(latent_channels=4)))
    )


def sd35():
    network = tiny_models.state_dict("sd3", 0, context=CONTEXT, pooled=2 * POOLED)
    return (
        prefixed("model.diffusion_model.", network) | encoders() | prefixed("first_stage_model.", demo_vae())
    )


def encoders():
    parts = {"clip_l": clip_l(), "clip_g": clip_g(), "t5xxl": t5xxl()}
    return {
        f"text_encoders.{name}.transformer.{key}": tensor
        for name, part in parts.items()
        for key, tensor in part.items()
    }


def demo():
    """The demo model as a checkpoint, without text encoders: its own are not of a kind that the host knows."""
    network = load_file(DEMO / "transformer" / "diffusion_pytorch_model.safetensors")
    network = model_detection.convert_diffusers_mmdit(network, "")
    network = {name: tensor.contiguous() for name, tensor in network.items()}
    return prefixed("model.diffusion_model.", network) | prefixed("first_stage_model.", demo_vae())


class TestSaveModelFile:
    """A model file where the host's loaders list it; `kind` is a function above."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "tests", "save", (), True

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"kind": ("STRING", {}), "folder": ("STRING", {}), "name": ("STRING", {})}}

    def save(self, kind, folder, name):
        place = Path(folder_paths.models_dir) / folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        with torch.inference_mode(False):
            config = {"config": json.dumps(CONFIGS[kind]())} if kind in CONFIGS else None
            save_file(getattr(sys.modules[__name__], kind)(), place, config)
        return {}


class TestDemoClip:
    """The demo model's own text encoders as a CLIP."""

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "make", ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {}}

    def make(self):
        import types

        pack = next(name for name in sys.modules if name.endswith(".training.models.families"))
        self.source = sys.modules[pack].load_diffusers(DEMO)
        self.patcher = types.SimpleNamespace(model=torch.nn.Linear(1, 1))
        return (self,)

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, text):
        cond = self.source.encode_text([text])
        return [[cond["context"], {"pooled_output": cond["pooled"]}]]


NODES = (TestSaveModelFile, TestDemoClip)
