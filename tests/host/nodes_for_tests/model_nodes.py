"""Tiny MODELs, data for them, and what a test wants to know of a MODEL."""

import hashlib
import sys
import types
from pathlib import Path

import comfy.sample
import comfy.samplers
import comfy.sd
import folder_paths
import torch
from comfy.ldm.wan import vae as wan_vae
from comfy.taesd.taesd import TAESD
from safetensors.torch import save_file

from . import tiny_models

CATEGORY = "tests"
CONTEXT = {"sd15": 768, "wan": 4096, "wan_i2v": 4096}
POOLED = {"sd3": 32, "flux": 32, "hunyuan_video": 768}
DTYPES = {
    "float32": None,  # on a GPU the host takes fewer bits on its own
    "scaled float8": None,
    "float8": torch.float8_e4m3fn,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32 everywhere": torch.float32,
}


class TestTinyModel:
    """A MODEL of a family, of a loader that cannot load it again."""

    CATEGORY, FUNCTION, RETURN_TYPES = CATEGORY, "make", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"family": ("STRING", {}), "dtype": (list(DTYPES), {})}}

    def make(self, family, dtype):
        return (tiny_models.load(family, 0, DTYPES[dtype], scaled=dtype == "scaled float8"),)


class TestRealFlux:
    """A MODEL of Flux's real size, or of so many blocks of each kind, and pictures with captions for it."""

    CATEGORY, FUNCTION, RETURN_TYPES = CATEGORY, "make", ("MODEL", "LATENT", "CONDITIONING")

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        numbers = {name: ("INT", {"default": 0, "max": 4096}) for name in ("depth", "side", "tokens")}
        return {"required": {"dtype": (list(DTYPES), {}), **numbers}}

    def make(self, dtype, depth, side, tokens):
        g = torch.Generator().manual_seed(1)
        captions = [
            [
                torch.randn(1, tokens, 4096, generator=g),
                {"pooled_output": torch.randn(1, 768, generator=g), "guidance": 2.5},
            ]
            for _ in range(2)
        ]
        latents = {"samples": torch.randn(2, 16, side, side, generator=g)}
        return tiny_models.real_flux(DTYPES[dtype], depth or None), latents, captions


class TestSaveTinyModel:
    """A file of a family, for the stock loader."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = CATEGORY, "make", (), True

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"family": ("STRING", {})}}

    def make(self, family):
        folder = Path(folder_paths.models_dir) / "diffusion_models"
        folder.mkdir(parents=True, exist_ok=True)
        with torch.inference_mode(False):
            save_file(tiny_models.state_dict(family, 0), folder / f"tiny_{family}.safetensors")
        return {}


class TestTinyData:
    """LATENT and CONDITIONING with a caption for each picture; `ragged`: of different lengths."""

    CATEGORY, FUNCTION, RETURN_TYPES = CATEGORY, "make", ("LATENT", "CONDITIONING", "CONDITIONING")

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {
            "required": {
                "family": ("STRING", {}),
                "n": ("INT", {}),
                "side": ("INT", {"default": 8}),
                "ragged": ("BOOLEAN", {"default": False}),
            }
        }

    def make(self, family, n, side, ragged):
        g = torch.Generator().manual_seed(1)
        channels = 4 if family == "sd15" else 16
        frames = [1] if family in ("wan", "hunyuan_video", "cogvideox") else []
        latents = torch.randn(n, channels, *frames, side, side, generator=g)
        captions = [caption(family, 3 + (i % 3 if ragged else 0), g) for i in range(n)]
        return {"samples": latents}, captions, [caption(family, 2 if ragged else 3, g)]


def caption(family, length, generator):
    options = {}
    if family in POOLED:
        options["pooled_output"] = torch.randn(1, POOLED[family], generator=generator)
    if family == "flux":
        options["guidance"] = 2.5
    return [torch.randn(1, length, CONTEXT.get(family, 48), generator=generator), options]


class TestTinyClip:
    """A CLIP that gives a token for each word, so that captions differ in length, and a summary."""

    CATEGORY, FUNCTION, RETURN_TYPES = CATEGORY, "make", ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"family": ("STRING", {})}}

    def make(self, family):
        self.family = family
        weights = torch.nn.Linear(1, 1)
        for weight in weights.parameters():  # the same in every process, as files are
            torch.nn.init.ones_(weight)
        self.patcher = types.SimpleNamespace(model=weights)
        return (self,)

    def tokenize(self, text):
        return ["begin", *text.split()]

    def encode_from_tokens_scheduled(self, tokens):
        seeds = [int(hashlib.sha256(token.encode()).hexdigest()[:8], 16) for token in tokens]
        width = CONTEXT.get(self.family, 48)
        rows = [torch.randn(width, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        pooled = torch.full((1, POOLED.get(self.family, 1)), len(tokens) / 10)
        return [[torch.stack(rows)[None], {"pooled_output": pooled}]]


class TestTinyVae:
    """A VAE of random weights: the tiny autoencoder, which the host takes in place of a family's own."""

    CATEGORY, FUNCTION, RETURN_TYPES = CATEGORY, "make", ("VAE",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"channels": ("INT", {"default": 16})}}

    def make(self, channels):
        weights = TAESD(latent_channels=channels).state_dict()
        g = torch.Generator().manual_seed(0)
        return (comfy.sd.VAE(sd={k: tiny_models.random_like(k, w, g) for k, w in weights.items()}),)


class TestTinyVideoVae:
    """A VAE of Wan's kind, small, with random weights."""

    CATEGORY, FUNCTION, RETURN_TYPES = CATEGORY, "make", ("VAE",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {}}

    def make(self):
        real = wan_vae.WanVAE
        wan_vae.WanVAE = lambda **options: real(**{**options, "dim": 8})
        try:
            sizes = {"z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": []}
            network = wan_vae.WanVAE(temperal_downsample=[False, True, True], dropout=0.0, **sizes)
            g = torch.Generator().manual_seed(0)
            weights = {k: tiny_models.random_like(k, w, g) for k, w in network.state_dict().items()}
            return (comfy.sd.VAE(sd=weights, dtype=torch.float32),)
        finally:
            wan_vae.WanVAE = real


class TestSample:
    """A digest of what the host samples with a MODEL, computed anew each time."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = CATEGORY, "sample", (), True

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"model": ("MODEL",), "latents": ("LATENT",), "conditioning": ("CONDITIONING",)}}

    @classmethod
    def IS_CHANGED(cls, **inputs):  # noqa: N802
        return float("nan")

    def sample(self, model, latents, conditioning):
        start = latents["samples"][:1]
        noise = comfy.sample.prepare_noise(start, 7)
        drawn = comfy.sample.sample(
            model, noise, 3, 1.5, "euler", "simple", conditioning[:1], conditioning[1:2], start, seed=7
        )
        left = {name for name in vars(model.model.diffusion_model) if "peft" in name}
        hooks = sum(len(m._forward_pre_hooks) + ("forward" in vars(m)) for m in model.model.modules())
        digest = hashlib.sha256(drawn.float().numpy().tobytes()).hexdigest()
        return {"ui": {"digest": [digest], "left": [*sorted(left), f"{hooks} hooks"]}}


class TestCompare:
    """How far the host's estimates with a LoRA are from those of the trained adapter, and from the base's."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = CATEGORY, "compare", (), True

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {
            "required": {
                "patched": ("MODEL",),
                "base": ("MODEL",),
                "run": ("ROLLOUT_RUN",),
                "latents": ("LATENT",),
                "conditioning": ("CONDITIONING",),
            }
        }

    @classmethod
    def IS_CHANGED(cls, **inputs):  # noqa: N802
        return float("nan")

    def compare(self, patched, base, run, latents, conditioning):
        batch = run.data.batch(torch.arange(1))
        sigma = run.source.schedule.sigma(torch.full((1,), 0.6)).float()
        forms = sys.modules[type(run).__module__.rpartition(".runs.")[0] + ".forms"]
        x = forms.add_noise(run.source.prediction, batch.x0, torch.randn(batch.x0.shape), sigma)
        with torch.no_grad(), run.model.denoiser() as denoiser:
            ours = denoiser.denoised(x, sigma, batch.cond)
        with_lora, without = (estimate(m, x, sigma, conditioning[:1]) for m in (patched, base))
        return {
            "ui": {
                "difference": [float((ours - with_lora).abs().max())],
                "effect": [float((with_lora - without).abs().max())],
            }
        }


def estimate(model, x, sigma, conditioning):
    """The host's estimate of x0, by its own sampler's means."""
    import comfy.model_management
    from comfy.sampler_helpers import convert_cond

    comfy.model_management.load_models_gpu([model])
    conds = {"positive": convert_cond(conditioning)}
    conds = comfy.samplers.process_conds(model.model, x, conds, x.device)
    model.pre_run()
    try:
        (out,) = comfy.samplers.calc_cond_batch(
            model.model, [conds["positive"]], x, sigma, model.model_options
        )
    finally:
        model.cleanup()
    return out


def failed(error):
    """Raise it."""
    raise error


FAULTS = {
    "a fault on purpose": lambda: failed(RuntimeError("a fault on purpose")),
    "no memory": lambda: failed(MemoryError()),  # Python's own has no words
    "no memory for a tensor": lambda: torch.empty(1 << 55),  # torch's allocator is asked, and says no
}


class TestFaultyModel:
    """A MODEL that fails in its call number `after`."""

    CATEGORY, FUNCTION, RETURN_TYPES = CATEGORY, "make", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        fault = (list(FAULTS), {"default": next(iter(FAULTS))})
        return {"required": {"model": ("MODEL",), "after": ("INT", {})}, "optional": {"fault": fault}}

    def make(self, model, after, fault="a fault on purpose"):
        calls = []

        def call(apply_model, options):
            calls.append(1)
            if len(calls) == after:
                FAULTS[fault]()
            return apply_model(options["input"], options["timestep"], **options["c"])

        model = model.clone()
        model.set_model_unet_function_wrapper(call)
        return (model,)


NODES = (
    TestTinyModel,
    TestRealFlux,
    TestSaveTinyModel,
    TestTinyData,
    TestTinyClip,
    TestTinyVae,
    TestTinyVideoVae,
    TestSample,
    TestCompare,
    TestFaultyModel,
)
