"""The workflows that ship, made short: small model files under the names that they give, few steps, small pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comfyui_process import ComfyUI, Prompt
from PIL import Image
from prompt_builder import PromptBuilder

from rollout_trainer.host.graph.catalog import from_object_info
from rollout_trainer.host.graph.reading import parse, read_file

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
FILES = {
    "flux1-dev.safetensors": ("flux", "diffusion_models"),
    "clip_l.safetensors": ("clip_l", "text_encoders"),
    "t5xxl_fp8_e4m3fn_scaled.safetensors": ("t5xxl", "text_encoders"),
    "ae.safetensors": ("demo_vae", "vae"),
    "sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors": ("sd35", "checkpoints"),
    "sd_xl_base_1.0.safetensors": ("sdxl", "checkpoints"),
    "wan2.1_t2v_1.3B_fp16.safetensors": ("wan", "diffusion_models"),
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors": ("umt5xxl", "text_encoders"),
    "wan_2.1_vae.safetensors": ("wan_vae", "vae"),
    "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors": ("wan", "diffusion_models"),
    "wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors": ("wan_high", "diffusion_models"),
    "wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors": ("wan_i2v", "diffusion_models"),
    "wan2.2_i2v_low_noise_14B_fp8_scaled.safetensors": ("wan_i2v_low", "diffusion_models"),
    "ltx-2-19b-dev-fp8.safetensors": ("ltx2", "checkpoints"),
    "gemma_3_12B_it_fp4_mixed.safetensors": ("gemma3_12b", "text_encoders"),
    "flux1-dev-kontext_fp8_scaled.safetensors": ("flux", "diffusion_models"),
    "flux-2-klein-base-4b.safetensors": ("klein", "diffusion_models"),
    "flux2-vae.safetensors": ("flux2_vae", "vae"),
    "z_image_bf16.safetensors": ("z_image", "diffusion_models"),
    "qwen_3_4b.safetensors": ("qwen3_4b", "text_encoders"),
    "qwen_image_edit_2511_fp8mixed.safetensors": ("qwen_edit", "diffusion_models"),
    "qwen_2.5_vl_7b_fp8_scaled.safetensors": ("qwen25_7b", "text_encoders"),
    "qwen_image_vae.safetensors": ("wan_vae", "vae"),
}
"""Model files that shipped workflows name: what `nodes_for_tests.small_files` makes of each, and its folder."""
FRONT_END = {"MarkdownNote", "Note", "PrimitiveNode", "Reroute"}
"""Nodes that are the front end's alone."""
PICTURE = "example.png"
"""What workflows edit: a picture that comes with ComfyUI."""
CLIPS = "demo/clips"
SIDE = 64
SHORT: dict[str, dict[str, Any]] = {
    "RolloutTrainLoRA": {"steps": 3},
    "RolloutInitTraining": {"steps": 6},
    "RolloutTrainSteps": {"steps": 2},
    "RolloutSample": {"steps": 2},
    "RolloutSigmas": {"steps": 3},
    "RolloutPreview": {"steps": 2},
    "RolloutExposureBias": {"samples": 4, "steps": 3},
    "EmptyLatentImage": {"width": SIDE, "height": SIDE},
    "EmptySD3LatentImage": {"width": SIDE, "height": SIDE},
    "EmptyFlux2LatentImage": {"width": SIDE, "height": SIDE},
    "SplitSigmas": {"step": 1},
    "WanImageToVideo": {"width": SIDE, "height": SIDE, "length": 5},
    "EmptyLTXVLatentVideo": {"width": SIDE, "height": SIDE, "length": 9},
    "EmptyHunyuanLatentVideo": {"width": SIDE, "height": SIDE},
}
"""Widgets by node class that make a run of seconds."""


def prompt_of(host: ComfyUI, name: str) -> Prompt:
    """The graph of a workflow as the front end would queue it."""
    prompt: Prompt = parse(
        read_file(WORKFLOWS / f"{name}.json"), from_object_info(host.object_info())
    ).to_api()
    return prompt


def shortened(prompt: Prompt, more: Mapping[str, Mapping[str, Any]] | None = None) -> Prompt:
    """The same graph with few steps; `more`: other values by node class."""
    widgets = {**SHORT, **(more or {})}
    small_references(prompt)
    for node in prompt.values():
        node["inputs"] |= widgets.get(node["class_type"], {})
        if node["inputs"].get("folder") == CLIPS:
            node["inputs"]["clip_frames"] = 5
        if node["class_type"] == "RolloutEncodeDataset" and node["inputs"]["resolution"]:
            node["inputs"]["resolution"] = SIDE
    for id, node in list(prompt.items()):
        origin = node["inputs"].get("data") or [""]
        if origin[0] in prompt and prompt[origin[0]]["class_type"] == "RolloutDatasetFromFolder":
            # Encoded by the training itself pictures get the model's own size, which no widget makes smaller.
            own = {name: node["inputs"][name] for name in ("model", "clip", "vae") if name in node["inputs"]}
            sizes = {"resolution": SIDE, "bucket_step": 64, "max_aspect": 2.0, "mirror": False}
            encoded = {"class_type": "RolloutEncodeDataset", "inputs": {**own, "dataset": origin, **sizes}}
            prompt[f"small-{id}"] = encoded
            node["inputs"]["data"] = [f"small-{id}", 0]
    return prompt


def small_references(prompt: Prompt) -> None:
    """Let Qwen's edits see their reference as large as it is: the node that encodes it makes a megapixel of it."""
    for id in [id for id, node in prompt.items() if node["class_type"] == "TextEncodeQwenImageEditPlus"]:
        inputs = prompt[id]["inputs"]
        coded, seen = f"{id}-coded", f"{id}-seen"
        for node in prompt.values():
            node["inputs"] |= {k: [seen, 0] for k, v in node["inputs"].items() if v == [id, 0]}
        pixels = {"pixels": inputs["image1"], "vae": inputs.pop("vae")}
        prompt[coded] = {"class_type": "VAEEncode", "inputs": pixels}
        reference = {"conditioning": [id, 0], "latent": [coded, 0]}
        prompt[seen] = {"class_type": "ReferenceLatent", "inputs": reference}


def model_files(prompt: Prompt) -> set[str]:
    """Names of the model files that a graph's loaders ask for."""
    values = (value for node in prompt.values() for value in node["inputs"].values())
    return {value for value in values if isinstance(value, str) and value.endswith(".safetensors")}


def make_files(host: ComfyUI, names: set[str]) -> None:
    """Write small files of these names where the host's loaders list them.

    Raises:
        KeyError: a name that no shipped workflow had: say in `FILES` what it is.
    """
    graph = PromptBuilder()
    for name in sorted(names):
        kind, folder = FILES[name]
        if not (host.base / "models" / folder / name).exists():
            graph.add("TestSaveModelFile", kind=kind, folder=folder, name=name)
    if graph.prompt:
        host.queue(graph.prompt)
    picture = host.base / "input" / PICTURE
    if not picture.exists():
        Image.linear_gradient("L").resize((SIDE, SIDE)).convert("RGB").save(picture)


def unknown(host: ComfyUI, name: str) -> list[str]:
    """Node classes of a workflow that this version of ComfyUI does not have."""
    nodes = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))["nodes"]
    return sorted({node["type"] for node in nodes} - host.object_info().keys() - FRONT_END)
