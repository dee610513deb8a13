"""The workflows that ship, made short: small model files under the names that they give, few steps, small pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comfyui_process import ComfyUI, Prompt
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
}
"""Model files that shipped workflows name: what `nodes_for_tests.small_files` makes of each, and its folder."""
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
    for node in prompt.values():
        node["inputs"] |= widgets.get(node["class_type"], {})
        if node["class_type"] == "RolloutEncodeDataset" and node["inputs"]["resolution"]:
            node["inputs"]["resolution"] = SIDE
    return prompt


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
