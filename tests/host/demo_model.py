"""The demo model in a ComfyUI and in this process: the same draws of it in both.

There the MODEL is the demo transformer in the stock UNETLoader, sampled with our nodes; here it is the same file
as a diffusers pipeline, stepped by `samplers.integrate`. Latents are compared as the model sees them: the host
hands those of SD3 out as ``latent / 1.5305 + 0.0609``.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_process import ComfyUI
from PIL import Image
from prompt_builder import Link, PromptBuilder
from safetensors.torch import load_file, save_file
from torch import Tensor

from rollout_trainer.samplers import integrate, trajectory
from rollout_trainer.training.conditioning import Cond
from rollout_trainer.training.models.diffusers import DiffusersModel
from rollout_trainer.training.models.families import load_diffusers
from rollout_trainer.training.pictures.sampling import Guided

ROOT = Path(__file__).resolve().parents[2]
SCALE, SHIFT = 1.5305, 0.0609  # comfy.latent_formats.SD3
CAPTIONS = [
    "grinning face, flat style, blue background",
    "crying face, flat style, green background",
    "red apple, flat style, white background",
]


@dataclass(frozen=True)
class Draw:
    """What to sample: some rows of the captions, each from its own noise."""

    sampler: str = "unipc"
    order: int = 2
    steps: int = 6
    start: float = 1.0
    end: float = 0.0
    cfg: float = 2.5
    seed: int = 11
    first: int = 0
    rows: int = 1
    picture: bool = False
    """Start from the picture, noised to `start`, not from noise alone."""


@dataclass(frozen=True)
class Demo:
    """The demo model, in a ComfyUI and here."""

    host: ComfyUI
    source: DiffusersModel
    cond: Cond
    uncond: Cond
    picture: Tensor
    """[1, 16, 16, 16] latent of a training picture, as the model sees it."""

    def here(self, draw: Draw) -> Tensor:
        """What our library samples, [rows, 16, 16, 16]."""
        chosen = slice(draw.first, draw.first + draw.rows)
        cond = {name: value[chosen] for name, value in self.cond.items()}
        uncond = {name: value.expand(draw.rows, *value.shape[1:]) for name, value in self.uncond.items()}
        sigmas = trajectory(self.source.schedule, draw.start, draw.end, draw.steps)[0]
        sigma, noise = sigmas[0].float(), host_noise(draw)
        x = sigma * noise + (1 - sigma) * (self.picture if draw.picture else torch.zeros_like(noise))
        with torch.no_grad():
            guided = Guided(self.source.denoiser(), cond, uncond, draw.cfg)
            x = integrate(guided, x, sigmas, draw.sampler, draw.order)
        return x / (1 - sigmas[-1].float())  # so the host hands out what still has noise in it

    def there(self, draw: Draw, node: str = "SamplerCustomAdvanced") -> Tensor:
        """What the host samples with our nodes."""
        graph = PromptBuilder()
        return model_space(self.run(add_draw(graph, draw, node), graph))

    def keep_conditioning(self, name: str, captions: Sequence[str]) -> None:
        """Write what `add_conditioning` finds under this name."""
        cond = dict(self.source.encode_text(captions))
        save_file(cond, self.host.base / "input" / f"{name}.safetensors")

    def run(self, drawn: Link, graph: PromptBuilder) -> Tensor:
        """Run a graph and return the latent `drawn`, as the host hands it out."""
        node, _ = graph.add("SaveLatent", samples=drawn, filename_prefix="tests/latent")
        saved = self.host.queue(graph.prompt)["outputs"][node]["latents"][0]
        place = self.host.base / "output" / saved["subfolder"] / saved["filename"]
        return load_file(place)["latent_tensor"].float()


def model_space(latent: Tensor) -> Tensor:
    """The latent as SD3 sees it."""
    return (latent - SHIFT) * SCALE


def host_noise(draw: Draw) -> Tensor:
    """The noise that the host's RandomNoise gives to the rows of a draw: those before them come first."""
    generator = torch.Generator().manual_seed(draw.seed)
    rows = [torch.randn(1, 16, 16, 16, generator=generator) for _ in range(draw.first + draw.rows)]
    return torch.cat(rows[draw.first :])


def largest(a: Tensor, b: Tensor) -> float:
    """The largest difference of two tensors of one shape."""
    assert a.shape == b.shape
    return float((a - b).abs().max())


# -- graphs ----------------------------------------------------------------------------------------


def add_model(graph: PromptBuilder) -> Link:
    """The demo transformer as the host takes it: shift 3."""
    return graph.add("UNETLoader", unet_name="rollout_demo.safetensors", weight_dtype="default")


def add_demo(graph: PromptBuilder) -> Link:
    """The demo transformer with the shift it was trained with."""
    return graph.add("ModelSamplingSD3", model=add_model(graph), shift=1.0)


def add_conditioning(graph: PromptBuilder, name: str, first: int = 0, rows: int = 1) -> Link:
    """Conditioning that a test has written."""
    return graph.add("TestConditioning", file=f"{name}.safetensors", first=first, rows=rows)


def add_latents(graph: PromptBuilder, draw: Draw) -> Link:
    """What is sampled from: the picture, or nothing, of a batch the rows from `first` on."""
    if draw.picture:
        return graph.add("LoadLatent", latent="picture.latent")
    batch = graph.add("EmptySD3LatentImage", width=128, height=128, batch_size=draw.first + draw.rows)
    return graph.add("LatentFromBatch", samples=batch, batch_index=draw.first, length=draw.rows)


def add_draw(
    graph: PromptBuilder,
    draw: Draw,
    node: str = "SamplerCustomAdvanced",
    model: Link | None = None,
    sampler: Link | None = None,
    latent: Link | None = None,
    captions: str = "captions",
) -> Link:
    """A draw of the demo model; links given take the place of what it would use."""
    model = model or add_demo(graph)
    shared = {
        "sampler": sampler or graph.add("RolloutSampler", sampler=draw.sampler, order=draw.order),
        "sigmas": graph.add("RolloutSigmas", model=model, steps=draw.steps, start=draw.start, end=draw.end),
        "latent_image": latent or add_latents(graph, draw),
    }
    guidance = {
        "model": model,
        "positive": add_conditioning(graph, captions, draw.first, draw.rows),
        "negative": add_conditioning(graph, "empty"),
        "cfg": draw.cfg,
    }
    if node == "SamplerCustom":
        return graph.add(node, add_noise=True, noise_seed=draw.seed, **guidance, **shared)
    noise, guider = graph.add("RandomNoise", noise_seed=draw.seed), graph.add("CFGGuider", **guidance)
    return graph.add(node, noise=noise, guider=guider, **shared)


def add_right_half(graph: PromptBuilder) -> Link:
    """A mask of the right half of the picture."""
    nothing = graph.add("SolidMask", value=0.0, width=128, height=128)
    half = graph.add("SolidMask", value=1.0, width=64, height=128)
    return graph.add("MaskComposite", destination=nothing, source=half, x=64, y=0, operation="add")


@pytest.fixture(scope="session")
def demo(comfyui: ComfyUI) -> Demo:
    """The demo model, its files where the host looks for them."""
    source = load_diffusers(ROOT / "demo" / "model")
    models, inputs = comfyui.base / "models" / "diffusion_models", comfyui.base / "input"
    models.mkdir(parents=True, exist_ok=True)
    inputs.mkdir(exist_ok=True)
    weights = ROOT / "demo" / "model" / "transformer" / "diffusion_pytorch_model.safetensors"
    shutil.copy(weights, models / "rollout_demo.safetensors")
    cond, uncond = source.encode_text(CAPTIONS), source.encode_text([""])
    with Image.open(ROOT / "demo" / "data" / "neutral-face.png") as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None] / 255
    picture = source.encode_images(pixels)
    kept = {"latent_tensor": picture / SCALE + SHIFT, "latent_format_version_0": torch.tensor([])}
    save_file(kept, inputs / "picture.latent")
    demo = Demo(comfyui, source, cond, uncond, picture)
    demo.keep_conditioning("captions", CAPTIONS)
    demo.keep_conditioning("empty", [""])
    return demo
