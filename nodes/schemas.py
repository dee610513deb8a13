"""How nodes are found: their place in the menu, and the words that people search for them."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

from ..host import io

CATEGORY = "training/rollout"

PLACES: Mapping[str, tuple[str, ...]] = {
    "models": ("LoadDiffusers", "LoadLoRA", "FromComfyModel", "ApplyLoRA"),
    "data": ("DatasetFromFolder", "EncodeDataset", "DatasetFromLatents", "DatasetFromImages", "MixDatasets"),
    "settings": (
        *("LoRASettings", "OptimizerSettings", "TimestepSettings", "LossSettings", "ScheduledSampling"),
        *("ReflexFlow", "SettingsFromJSON", "SettingsToJSON", "Recipe"),
    ),
    "train": ("TrainLoRA", "InitTraining", "TrainSteps", "ResumeTraining", "Validate", "SaveLoRA", "Trial"),
    "pictures": ("Sample", "SamplePrompts", "Preview", "ExposureBias", "LossPlot", "CompareImages"),
    "sampling": ("Sampler", "Sigmas"),
}
"""The folders below `CATEGORY`, and what is in them; of a node id without its ``Rollout``."""

ALIASES: Mapping[str, tuple[str, ...]] = {
    "LoadDiffusers": ("diffusers folder", "pipeline", "load base model"),
    "LoadLoRA": ("kohya", "lycoris", "continue lora", "load lora to train"),
    "FromComfyModel": ("checkpoint to train", "model to train", "trainable model", "flux", "sdxl"),
    "ApplyLoRA": ("use trained lora", "test lora", "sample with lora"),
    "DatasetFromFolder": (
        "load images folder",
        "load image text",
        "captions",
        "caption",
        "training pictures",
    ),
    "EncodeDataset": ("cache latents", "vae encode dataset", "resolution buckets", "bucket"),
    "DatasetFromLatents": ("make training dataset", "latents dataset"),
    "Recipe": (
        "preset",
        "recommended settings",
        "defaults",
        "flux settings",
        "wan settings",
        "sdxl settings",
    ),
    "DatasetFromImages": ("image list dataset", "images to train on", "load image text"),
    "MixDatasets": ("regularisation", "regularization", "several datasets", "combine datasets", "reg images"),
    "LoRASettings": ("rank", "alpha", "network dim", "dora", "loha", "lokr", "lycoris"),
    "OptimizerSettings": ("adamw", "prodigy", "adafactor", "learning rate", "scheduler"),
    "TimestepSettings": ("noise levels", "logit normal", "timestep sampling", "min timestep"),
    "LossSettings": ("min snr", "huber", "mse"),
    "ScheduledSampling": ("exposure bias", "rollout settings", "self forcing", "scheduled sampling"),
    "Trial": ("compare settings", "ablation", "a/b test", "which is better", "sweep"),
    "ReflexFlow": ("reflexflow", "anti drift", "frequency compensation"),
    "SettingsFromJSON": ("simpletuner", "import config json"),
    "SettingsToJSON": ("simpletuner", "export config json"),
    "TrainLoRA": (
        "finetune",
        "fine-tune",
        "train",
        "trainer",
        "dreambooth",
        "kohya",
        "ai-toolkit",
        "lora training",
    ),
    "InitTraining": ("start training", "staged training"),
    "TrainSteps": ("continue training", "staged training"),
    "ResumeTraining": ("continue training", "restore checkpoint", "load state"),
    "Validate": ("validation loss", "test loss"),
    "SaveLoRA": ("export lora", "save lora weights", "safetensors"),
    "Sample": ("lora preview", "test prompts", "generate pictures", "draw"),
    "SamplePrompts": ("preview while training", "sample prompts", "validation prompts", "lora preview"),
    "Preview": ("lora preview", "filmstrip", "drift"),
    "ExposureBias": ("energy distance", "spectrum", "measure model"),
    "LossPlot": ("loss curve", "plot loss graph", "tensorboard"),
    "CompareImages": ("before after", "image grid", "contact sheet"),
    "Sampler": ("unipc", "uni_pc", "dpm", "dpm++", "euler", "rk4", "runge kutta", "ksampler select"),
    "Sigmas": ("scheduler", "noise schedule", "basic scheduler"),
}
"""What people type who look for a node, beside its name."""


_OF_A_RUN = (
    *("accumulation", "seed", "caption_dropout", "autocast", "ema_decay", "keep", "validate_every"),
    *("activation_offload", "memory", "hold_out", "patience", "save_minutes", "recipe", "compile"),
)
ADVANCED: Mapping[str, tuple[str, ...]] = {
    "LoadDiffusers": ("swap_weights",),
    "DatasetFromFolder": (
        *("alpha_masks", "subfolders", "control_1", "control_1_role", "control_2", "control_2_role"),
        *("control_3", "control_3_role", "clip_frames", "clip_fps", "clip_part", "clip_gives"),
    ),
    "EncodeDataset": ("bucket_step", "max_aspect", "caption_variants", "keep_tags", "caption_weights"),
    "LoRASettings": ("kind", "dropout", "targets"),
    "OptimizerSettings": ("final_rate", "weight_decay", "beta1", "beta2", "grad_clip"),
    "TimestepSettings": ("low", "high", "sigma_low", "sigma_high"),
    "LossSettings": ("huber_delta",),
    "ScheduledSampling": (
        *("ramp_steps", "prob_start", "prob_end", "start_step", "ramp_shape", "order", "strategy"),
        *("steps_per_trajectory", "gamma", "guidance"),
        *("preserve", "preserve_weight", "preserve_rows", "preserve_steps"),
    ),
    "ReflexFlow": ("alpha", "beta2", "fc_norm"),
    "TrainLoRA": (*_OF_A_RUN, "tensorboard"),
    "InitTraining": _OF_A_RUN,
    "TrainSteps": ("until_step", "learning_rate", "tensorboard"),
    "Sample": ("negative", "width", "height", "order"),
    "SamplePrompts": ("sampler", "order", "negative", "width", "height"),
    "Preview": ("target", "seed"),
    "ExposureBias": ("sampler", "order", "seed"),
    "Sigmas": ("start", "end"),
    "MixDatasets": ("caption_dropout", "loss_weight"),
}  # fmt: skip
"""Widgets that most people never touch: a node opens without those that stand at their default, until it is asked for
them (`web/advanced.js`; by the front end itself in Nodes 2.0)."""


def schema(node_id: str, **given: Any) -> io.Schema:
    """A node's `io.Schema`, with its place in the menu and, where the host takes them, its search words."""
    name = node_id.removeprefix("Rollout")
    (folder,) = (folder for folder, names in PLACES.items() if name in names)
    if "search_aliases" in signature(io.Schema).parameters:  # ComfyUI 0.33 does, 0.3.64 does not
        given["search_aliases"] = list(ALIASES[name])
    for item in given.get("inputs", []):
        if item.id in ADVANCED.get(name, ()):
            item.extra_dict = {**item.extra_dict, "advanced": True}  # io.Input of 0.3.64 takes no `advanced`
    return io.Schema(node_id=node_id, category=f"{CATEGORY}/{folder}", **given)
