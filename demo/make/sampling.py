"""Pictures from the base or from a pipeline folder, to look at and to measure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from .render import SIZE

Pipeline = Any  # StableDiffusion3Pipeline, whose parts diffusers does not declare
STEPS, GUIDANCE = 20, 2.0


def load_pipeline(folder: Path) -> Pipeline:
    """The pipeline in float32, without the third text encoder it does not have."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        folder, torch_dtype=torch.float32, text_encoder_3=None, tokenizer_3=None
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: Pipeline, captions: Sequence[str], guidance: float = GUIDANCE, seed: int = 1) -> Tensor:
    """One picture a caption, [N, 3, 128, 128] in [0, 1]; picture i has the seed `seed + i`."""
    batches = []
    for start in range(0, len(captions), 32):
        part = list(captions[start : start + 32])
        seeds = range(seed + start, seed + start + len(part))
        output = pipeline(
            part,
            negative_prompt=[""] * len(part),
            height=SIZE,
            width=SIZE,
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            max_sequence_length=0,  # else 256 zero tokens are appended for the missing third encoder
            output_type="pt",
            generator=[torch.Generator().manual_seed(s) for s in seeds],
        )
        batches.append(output.images.float())
    return torch.cat(batches)
