"""Trains a tiny model of each family whole and in two stages, everything on: one JSON line a family and adapter.

    COMFYUI_PATH=... PACK_PARENT=... <the host's python> resume_probe.py ROWS.jsonl [family/kind/steps ...]

`steps` are those of each of the two stages.

Run by `test_resume.py`. What `family_probe.py` opens is opened here in the same way.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

HOST = os.environ["COMFYUI_PATH"]
rows_file, named = Path(sys.argv[1]), sys.argv[2:]
sys.path[:0] = [os.environ["PACK_PARENT"], HOST]
sys.argv = [sys.argv[0], "--cpu"]
import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import comfy.cli_args  # noqa: E402
import tiny_families  # noqa: E402
import torch  # noqa: E402

from rollout_trainer.host.comfyui.conditioning import conditioning_rows  # noqa: E402
from rollout_trainer.host.comfyui.model import ComfyModel  # noqa: E402
from rollout_trainer.nodes.comfy import latent as node_latent  # noqa: E402
from rollout_trainer.training.data.latents import dataset_from_latents  # noqa: E402
from rollout_trainer.training.lora.adapter import AdapterKind, LoRAConfig  # noqa: E402
from rollout_trainer.training.models.hosted import HostModel  # noqa: E402
from rollout_trainer.training.objective.config import RolloutConfig  # noqa: E402
from rollout_trainer.training.objective.timesteps import TimestepConfig  # noqa: E402
from rollout_trainer.training.runs.run import reopen, start, train  # noqa: E402
from rollout_trainer.training.trainer.config import TrainConfig  # noqa: E402
from rollout_trainer.training.trainer.optim import OptimizerConfig  # noqa: E402

torch.set_num_threads(1)
warnings.filterwarnings("ignore")
KINDS = get_args(AdapterKind)
Row = dict[str, Any]


def everything(kind: AdapterKind, steps: int, checkpointing: bool) -> TrainConfig:
    """Settings under which a step draws from every stream."""
    return TrainConfig(
        steps=2 * steps,
        batch_size=2,
        accumulation=2,
        caption_dropout=0.3,
        ema_decay=0.9,
        gradient_checkpointing=checkpointing,
        lora=LoRAConfig(kind, rank=2, alpha=2.0, dropout=0.3),
        optimizer=OptimizerConfig(lr=1e-2, schedule="cosine", warmup_steps=2),
        timesteps=TimestepConfig("logit_normal"),
        rollout=RolloutConfig(
            max_step_offset=3, ramp_steps=6, prob_start=0.3, prob_end=0.9, steps_per_trajectory=20, reuse=2
        ),
    )


def differing(a: Any, b: Any) -> list[str]:
    """Names of the tensors of two states that are not the same bits."""
    names = a.tensors.keys() | b.tensors.keys()
    return sorted(n for n in names if n not in a.tensors or n not in b.tensors
                  or not torch.equal(a.tensors[n].nan_to_num(-7), b.tensors[n].nan_to_num(-7)))  # fmt: skip


def probe(family: str, kind: AdapterKind, steps: int, checkpointing: bool) -> Row:
    """What came of one family with one kind of adapter."""
    row: Row = {"family": family, "kind": kind, "checkpointing": checkpointing}
    try:
        model = tiny_families.build(family)
        source = HostModel(ComfyModel(model))
        latent, captions, empty = tiny_families.data(family)
        with torch.inference_mode(False), torch.no_grad():
            conds = [own for caption in captions for own in conditioning_rows([caption])]
            last = conditioning_rows([empty])[0]
            own = [node_latent(source, latent)]
            data = dataset_from_latents(own, conds, last, None, 1, source.name)
    except Exception as error:
        return row | {"unknown": f"{type(error).__name__}: {error}"[:300]}
    try:
        config = everything(kind, steps, checkpointing)
        if not data.empty_cond:
            config = replace(config, caption_dropout=0.0)
        with tempfile.TemporaryDirectory(dir=rows_file.parent) as folder:
            fresh = start(Path(folder), "run", source, data, config)
            half = train(fresh, steps)
            again = HostModel(ComfyModel(model))  # as after the host was started again
            staged = train(reopen(half.folder.path, again, data), steps).state
            whole = train(start(Path(folder), "whole", source, data, config), 2 * steps).state
    except Exception as error:
        return row | {"refused": f"{type(error).__name__}: {error}"[:300]}
    finite = all(bool(t.isfinite().all()) for n, t in whole.tensors.items() if n.startswith("adapter."))
    return row | {"differing": differing(whole, staged), "finite": finite}


if __name__ == "__main__":
    chosen = [name.split("/") for name in named] or [(f, k, 2) for f in tiny_families.FAMILIES for k in KINDS]
    with rows_file.open("a") as out:
        for i, (family, kind, steps) in enumerate(chosen):
            out.write(json.dumps(probe(family, kind, int(steps), i % 2 == 1)) + "\n")
            out.flush()
