"""Trains a tiny model of each family in this process, and writes what came of it: one JSON line a family.

    COMFYUI_PATH=... PACK_PARENT=... <the host's python> family_probe.py ROWS.jsonl [family ...]

PACK_PARENT holds the pack under the name rollout_trainer. Run by `test_families.py`; all numbers are drawn from fixed
seeds.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HOST = os.environ["COMFYUI_PATH"]
names = sys.argv[2:]
rows_file = Path(sys.argv[1])
sys.path[:0] = [os.environ["PACK_PARENT"], HOST]
sys.argv = [sys.argv[0], "--cpu"]
import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import comfy.cli_args  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402
import tiny_families  # noqa: E402
import torch  # noqa: E402
from comfy.sampler_helpers import convert_cond  # noqa: E402
from torch import Tensor  # noqa: E402

from rollout_trainer.host.comfyui.conditioning import conditioning_rows  # noqa: E402
from rollout_trainer.host.comfyui.model import ComfyModel  # noqa: E402
from rollout_trainer.nodes.comfy import latent as node_latent  # noqa: E402
from rollout_trainer.training.data.latents import dataset_from_latents  # noqa: E402
from rollout_trainer.training.files import read_file  # noqa: E402
from rollout_trainer.training.forms import add_noise  # noqa: E402
from rollout_trainer.training.lora.adapter import LoRAConfig, is_linear, target_modules  # noqa: E402
from rollout_trainer.training.lora.presets import preset_targets  # noqa: E402
from rollout_trainer.training.models.hosted import HostModel  # noqa: E402
from rollout_trainer.training.objective.config import RolloutConfig  # noqa: E402
from rollout_trainer.training.runs.run import Run, start, train, validate  # noqa: E402
from rollout_trainer.training.trainer.config import TrainConfig  # noqa: E402
from rollout_trainer.training.trainer.optim import OptimizerConfig  # noqa: E402

torch.set_num_threads(1)
warnings.filterwarnings("ignore")

STEPS = 12
RANK = 4
LR = 3e-3
Row = dict[str, Any]


class Lines(logging.Handler):
    """What the host has logged."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record.getMessage())


LOG = Lines()
logging.getLogger().addHandler(LOG)
logging.getLogger().setLevel(logging.WARNING)


def said(error: BaseException) -> str:
    """An error in one line, with where it came from."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]} @ {Path(last.filename).name}:{last.lineno}"


def bits(model: Any) -> str:
    """A digest of a MODEL's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.model.state_dict().items()):
        stored = getattr(value, "_qdata", value).detach().contiguous().reshape(-1)
        digest.update(name.encode())
        if stored.numel():
            digest.update(stored.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@torch.inference_mode()
def estimate(model: Any, x: Tensor, sigma: Tensor, caption: Any, mask: Tensor | None, x0: Tensor) -> Tensor:
    """The host's estimate of x0, by its own sampler's means.

    Args:
        mask: the latent's noise mask, whose zeros keep `x0`.
    """
    net = model.model
    comfy.model_management.load_models_gpu([model])
    told: Row = {"latent_image": torch.zeros_like(x)}
    if "latent_shapes" in inspect.signature(comfy.samplers.process_conds).parameters:
        told["latent_shapes"] = [x.shape]
    if mask is not None:  # as KSamplerX0Inpaint has it
        mask = mask.expand_as(x)
        told["denoise_mask"] = mask
        clean = net.scale_latent_inpaint(
            x=x, sigma=sigma, noise=torch.zeros_like(x), latent_image=x0, denoise_mask=mask
        )
        x = x * mask + clean * (1 - mask)
    conds = comfy.samplers.process_conds(net, x, {"positive": convert_cond([caption])}, x.device, **told)
    model.pre_run()
    try:
        (out,) = comfy.samplers.calc_cond_batch(net, [conds["positive"]], x, sigma, model.model_options)
    finally:
        model.cleanup()
    return out if mask is None else out * mask + x0 * (1 - mask)


def probe(name: str) -> Row:
    """The row of a family."""
    row: Row = {"family": name}
    LOG.seen.clear()
    try:
        model = tiny_families.build(name)
    except Exception as error:
        return row | {"unknown": said(error)}
    before = bits(model)
    latent, captions, empty = tiny_families.data(name)
    try:
        table = model.get_model_object("model_sampling").sigmas
        x = latent["samples"][:1]
        sigma = table[len(table) // 2].reshape(1).clone()
        estimate(model, x * 0.7, sigma, captions[0], latent.get("noise_mask"), x)
    except Exception as error:
        row["host"] = said(error)
    try:
        source, data = opened(model, latent, captions, empty)
    except Exception as error:
        return row | {"refused": said(error)}
    row |= facts(source)
    runs: dict[str, Run] = {}
    for checkpointing in (False, True):
        key = "checkpointed" if checkpointing else "plain"
        try:
            with watched(model, data) as held:
                runs[key], row[key] = trained(source, data, checkpointing)
            row["held"] = all(held)
        except Exception as error:
            row[key] = said(error)
    if len(runs) == 2:
        a, b = (run.adapter.tensors for run in runs.values())
        row["checkpointing_differs"] = max(float((a[k] - b[k]).abs().max()) for k in a)
        row["way"] = STEPS * LR  # the most that a weight moves
    row["bits"] = bits(model) == before
    if runs:
        row |= loaded(model, source, data, next(iter(runs.values())), captions, latent)
        row["bits_after_sampling"] = bits(model) == before
    return row


def opened(model: Any, latent: Row, captions: list[Any], empty: Any) -> tuple[HostModel, Any]:
    """The model and its data, as the nodes make them."""
    source = HostModel(ComfyModel(model))
    with torch.inference_mode(False), torch.no_grad():
        conds = [row for caption in captions for row in conditioning_rows([caption])]
        own = [node_latent(source, latent)]
        return source, dataset_from_latents(own, conds, conditioning_rows([empty])[0], None, 1, source.name)


@contextmanager
def watched(model: Any, data: Any) -> Iterator[list[bool]]:
    """Whether the frames that samples are given were clean, in every call of the network inside."""
    held: list[bool] = []
    given = data.buckets[0].cond.get("given_latent")

    def note(_module: Any, args: tuple[Any, ...]) -> None:
        for x in args[0]:
            held.append(any(bool((x[:, :1] - g).abs().max() < 1e-5) for g in given))

    network = model.model.diffusion_model
    hook = None if given is None else network.register_forward_pre_hook(note)
    try:
        yield held
    finally:
        if hook is not None:
            hook.remove()


def facts(source: HostModel) -> Row:
    """What the pack takes the family for."""
    module = source.network.module
    linear = [name for name, m in module.named_modules() if is_linear(m)]
    chosen = target_modules(module, preset_targets("attention+mlp", module, source.default_lora_targets))
    shift = getattr(source.schedule, "shift", None)
    return {
        "name": source.name,
        "prediction": source.prediction,
        "shift": None if shift is None else round(float(shift), 3),
        "resolution": source.default_resolution,
        "frames": source.network.frames,
        "linear": len(linear),
        "targets": len(chosen),
        "chosen": kinds(chosen),
        "others": sorted(set(kinds(linear)) - set(kinds(chosen))),
    }


def kinds(modules: list[str]) -> list[str]:
    """Names of modules without the numbers of their blocks."""
    return sorted({re.sub(r"\.\d+", ".N", name) for name in modules})


def trained(source: HostModel, data: Any, checkpointing: bool) -> tuple[Run, list[float]]:
    """A run after some steps, and its validation loss before and after."""
    config = TrainConfig(
        steps=STEPS,
        batch_size=2,
        gradient_checkpointing=checkpointing,
        caption_dropout=0.2,
        lora=LoRAConfig(rank=RANK, alpha=RANK),
        optimizer=OptimizerConfig(lr=LR),
        rollout=RolloutConfig(max_step_offset=3, probability=0.5),
    )
    folder = Path(tempfile.mkdtemp(dir=rows_file.parent))
    run = start(folder, "run", source, data, config)
    first = validate(run, data)
    run = train(run, STEPS)
    return run, [first, validate(run, data)]


def loaded(model: Any, source: HostModel, data: Any, run: Run, captions: list[Any], latent: Row) -> Row:
    """The run's LoRA file in the stock loader, beside the adapter that was trained."""
    out: Row = {}
    ups = [v for k, v in run.adapter.tensors.items() if k.endswith("lora_B.weight")]
    out["untrained"] = sum(not bool(v.any()) for v in ups)
    file = Path(tempfile.mkdtemp(dir=rows_file.parent)) / "lora.safetensors"
    source.save_lora(run.adapter, {}, file)
    LOG.seen.clear()
    with torch.inference_mode():
        patched, _ = comfy.sd.load_lora_for_models(model, None, dict(read_file(file)[0]), 1.0, 0)
    out["not_loaded"] = sum("not loaded" in line.lower() for line in LOG.seen)
    differences, effects, sizes = [], [], []
    for i, caption in enumerate(captions):
        sigma = source.schedule.sigma(torch.full((1,), 0.6, dtype=torch.float64)).float()
        batch = data.batch(torch.tensor([i]))
        noise = torch.randn(batch.x0.shape, generator=torch.Generator().manual_seed(3))
        x = add_noise(source.prediction, batch.x0, noise, sigma)
        with torch.inference_mode(False), torch.no_grad(), run.model.denoiser() as denoiser:
            ours = denoiser.denoised(x, sigma, batch.cond)
        mask = latent.get("noise_mask")
        theirs, base = (estimate(m, x, sigma, caption, mask, batch.x0) for m in (patched, model))
        sizes.append(float(theirs.abs().max()))
        differences.append(float((ours - theirs).abs().max()))
        effects.append(float((theirs - base).abs().max()))
    comfy.model_management.unload_all_models()
    return out | {"difference": max(differences), "effect": min(effects), "size": max(sizes)}


if __name__ == "__main__":
    with rows_file.open("a") as out:
        for name in names or tiny_families.FAMILIES:
            out.write(json.dumps(probe(name)) + "\n")
            out.flush()
