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

import comfy.ldm.wan.vae
import comfy.ops
import comfy.sd1_clip
import comfy.supported_models
import folder_paths
import torch
from comfy import model_detection
from comfy.clip_model import CLIPTextModel
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.taesd.taesd import TAESD
from comfy.text_encoders.t5 import T5
from safetensors.torch import load_file, save_file

from . import tiny_models

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
CONTEXT, POOLED = 4096, 64
VAE_WIDTH = 16


# -- what the host is told -------------------------------------------------------------------------


def small_text_encoders():
    """Text encoders are built with few layers."""
    cls = comfy.sd1_clip.SDClipModel
    build = cls.__init__

    @wraps(build)
    def small(self, *args, textmodel_json_config=None, **kwargs):
        build(self, *args, textmodel_json_config=text_config(textmodel_json_config), **kwargs)

    cls.__init__ = small


def text_config(given=None):
    """The small form of a config that the host gives by its path; None is that of CLIP-L."""
    path = Path(given or COMFY / "sd1_clip_config.json")
    config = json.loads(path.read_text())
    return config | SMALL[config["model_type"]]


def narrow_wan_vae():
    """Wan's autoencoder is built narrow; older hosts know one width."""
    cls = comfy.ldm.wan.vae.WanVAE
    build = cls.__init__
    cls.__init__ = wraps(build)(lambda self, **kwargs: build(self, **(kwargs | {"dim": VAE_WIDTH})))


def detect_small_networks():
    """Flux of the size that its weights have, and an SDXL of two levels."""
    detect = model_detection.detect_unet_config

    @wraps(detect)
    def told(state_dict, prefix, *args, **kwargs):
        config = detect(state_dict, prefix, *args, **kwargs)
        if config is not None and config.get("image_model") == "flux":
            hidden = len(state_dict[f"{prefix}img_in.weight"])
            context = state_dict[f"{prefix}txt_in.weight"].shape[1]
            config |= {"hidden_size": hidden, "num_heads": hidden // 128, "context_in_dim": context}
        return config

    model_detection.detect_unet_config = told
    comfy.supported_models.models.insert(0, SmallSDXL)


class SmallSDXL(comfy.supported_models.SDXL):
    """SDXL with fewer and narrower layers."""

    unet_config = {  # noqa: RUF012
        "model_channels": 64, "use_linear_in_transformer": True, "transformer_depth": [0, 0, 1, 1],
        "context_dim": 2 * POOLED, "adm_in_channels": POOLED + 6 * 256, "use_temporal_attention": False,
    }  # fmt: skip


small_text_encoders()
narrow_wan_vae()
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


def sentence_pieces():
    """A tokenizer of the words of the demo's captions."""
    import sentencepiece

    captions = [path.read_text().strip() for path in sorted((ROOT / "demo" / "data").glob("*.txt"))]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions), model_writer=model, vocab_size=150, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    return torch.ByteTensor(list(model.getvalue()))


def flux():
    return tiny_models.state_dict("flux", 0, context=CONTEXT, pooled=POOLED)


def wan():
    return tiny_models.state_dict("wan", 0)


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
            save_file(getattr(sys.modules[__name__], kind)(), place)
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
