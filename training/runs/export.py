"""The trained adapter as a file: named, numbered, with all that made it in its header."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..checks import from_plain, to_plain
from ..files import claim_name, file_sha256, lora_header, partial_path, sweep_partials, write_tensors
from ..lora.adapter import LoRAConfig
from ..lora.file import MAGNITUDE, NAMES, folded
from ..models.source import BaseFile
from ..trainer.config import TrainConfig
from ..trainer.state import History
from .folder import RunFolder
from .run import Run, saved_adapter

FORMAT = "rollout-trainer-1"


ARCHITECTURES = {
    "SD3": "stable-diffusion-3", "StableDiffusion3Pipeline": "stable-diffusion-3",
    "Flux": "flux-1-dev", "FluxPipeline": "flux-1-dev", "FluxSchnell": "flux-1-schnell",
    "BaseModel": "stable-diffusion-v1", "StableDiffusionPipeline": "stable-diffusion-v1",
    "SDXL": "stable-diffusion-xl-v1-base", "StableDiffusionXLPipeline": "stable-diffusion-xl-v1-base",
    "SDXLRefiner": "stable-diffusion-xl-v1-refiner", "Lumina2": "lumina-2", "HunyuanVideo": "hunyuan-video",
    "WAN21": "wan-2.1", "QwenImage": "qwen-image", "Chroma": "chroma",
}  # fmt: skip
"""modelspec's names of architectures, by the host's or diffusers' name of the family."""
_PATH = re.compile(r"""^["' ]*(~[/\\]|/[^/\n]+/|[A-Za-z]:[/\\]|\\\\|file:)""")
"""How an absolute path begins."""


def save_lora(run: Run, folder: str | Path, name: str, workflow: Mapping[str, Any] | None = None) -> Path:
    """Write the adapter of the state that `run` names to ``<folder>/<name>.safetensors``.

    A file of that name stays as it is: the new one gets a number, ``<name>-2.safetensors`` and so on.

    Args:
        workflow: ``prompt`` and ``workflow`` of the graph that made it; absolute paths in it become names.

    Raises:
        ValueError: `name` is empty or leaves `folder`.
        RuntimeError: the folder cannot be written.
    """
    about = metadata(run) | _graph(workflow or {})
    return _write(folder, name, lambda path: run.source.save_lora(run.adapter, about, path))


def _graph(workflow: Mapping[str, Any]) -> dict[str, str]:
    """A graph in the header as ComfyUI's front end looks for it where a file is dropped on it."""
    return {key: json.dumps(without_paths(value)) for key, value in workflow.items() if value}


def without_paths(value: Any) -> Any:
    """Plain JSON values, every text that is an absolute path cut to its last name: others need not see the rest."""
    if isinstance(value, Mapping):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(item) for item in value]
    if isinstance(value, str):
        return "\n".join(map(_name_of, value.split("\n")))
    return value


def _name_of(text: str) -> str:
    """The last name of an absolute path; other texts as they are."""
    return re.split(r"[/\\]", text.rstrip("/\\\"' "))[-1] if _PATH.match(text) else text


def save_lora_of_state(run: RunFolder, step: int, folder: str | Path, name: str) -> Path:
    """The same of a saved state, without the model: the file has all that the one of `save_lora` has, but for the
    hashes of the base model's file.

    Raises:
        ValueError: `name` is empty or leaves `folder`, or the file cannot be made without the model: the folder
            does not say how layers are named in files, or it is a DoRA, whose scale depends on the base weights.
        RuntimeError: no such state, or the folder cannot be written.
    """
    described = run.config()
    config = from_plain(TrainConfig, described["config"])
    renamed = NAMES.get(described["model"].get("lora_names", ""))
    tensors = folded(saved_adapter(run, step, config))
    if renamed is None or any(key.endswith(MAGNITUDE) for key in tensors):
        why = "its folder does not say how its layers are named" if renamed is None else "it is a DoRA"
        raise ValueError(
            f"{run.path.name} must be saved with its model, {why}; use Resume Training and Save LoRA in a workflow"
        )
    history = History.from_tensors(run.load(step, "history").group("history"))
    about = _metadata(described, config, step, history, described.get("parents", []))
    about |= _date(run, step) | _graph(run.workflow())
    own = renamed(tensors)
    return _write(folder, name, lambda path: write_tensors(path, own, lora_header(own, about)))


def _write(folder: str | Path, name: str, write: Callable[[Path], None]) -> Path:
    """Let `write` make a new file of that name in `folder`; where it is."""
    folder = Path(folder)
    target = (folder / name).resolve()
    if not name.strip() or not target.is_relative_to(folder.resolve()) or target == folder.resolve():
        raise ValueError(
            f"filename must be a name inside {folder.name}, got {name!r}; leave out leading .. and /"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep_partials(target.parent)
        made = partial_path(target)
        try:
            write(made)
            return claim_name(made, names(target))
        finally:
            made.unlink(missing_ok=True)
    except OSError as err:
        raise RuntimeError(
            f"{target.with_name(f'{target.name}.safetensors')} must be writable, got {err.strerror or err}; free space "
            "or choose another folder"
        ) from err


def names(target: Path) -> Iterator[Path]:
    """``target.safetensors``, and the numbered names after it."""
    yield target.with_name(f"{target.name}.safetensors")
    for number in range(2, 1_000_000):
        yield target.with_name(f"{target.name}-{number}.safetensors")


def metadata(run: Run) -> dict[str, str]:
    """What a reader of the file needs to know where it comes from; plain strings, as the format asks."""
    about = _metadata(run.folder.config(), run.config, run.step, run.history, run.parents)
    return about | _date(run.folder, run.step) | of_base_file(getattr(run.source, "base_file", None))


def _date(folder: RunFolder, step: int) -> dict[str, str]:
    """When the state was saved."""
    saved = datetime.fromtimestamp(folder.state_path(step).stat().st_mtime, timezone.utc)
    return {"modelspec.date": saved.strftime("%Y-%m-%dT%H:%M:%SZ")}


def modelspec(described: Mapping[str, Any], lora: LoRAConfig) -> dict[str, str]:
    """The keys of modelspec 1.0 (Stability-AI/ModelSpec) that are known."""
    model = described["model"]
    family = str(model.get("family", model["name"]))
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{ARCHITECTURES.get(family, family)}/{lora.kind}",
        "modelspec.implementation": "https://github.com/rollout-trainer/rollout-trainer",
        "modelspec.title": f"{lora.kind} of {model['name']}",
    }


def of_sd_scripts(described: Mapping[str, Any], config: TrainConfig, step: int) -> dict[str, str]:
    """What sd-scripts writes and other tools read, where we have the same."""
    model, data, optimizer = described["model"], described["data"], config.optimizer
    per_epoch = int(data.get("samples_per_epoch", 0))
    batch = config.batch_size * config.accumulation
    modules = {"lora": "networks.lora", "dora": "networks.lora"}
    facts = {
        "ss_base_model_version": ARCHITECTURES.get(str(model.get("family")), model["name"]),
        "ss_sd_model_name": model["name"],
        "ss_network_module": modules.get(config.lora.kind, "lycoris.kohya"),
        "ss_network_dim": config.lora.rank,
        "ss_network_alpha": f"{config.lora.alpha:g}",
        "ss_network_dropout": config.lora.dropout,
        "ss_optimizer": optimizer.name,
        "ss_learning_rate": optimizer.lr,
        "ss_unet_lr": optimizer.lr,
        "ss_lr_scheduler": optimizer.schedule,
        "ss_lr_warmup_steps": optimizer.warmup_steps,
        "ss_max_grad_norm": optimizer.grad_clip,
        "ss_steps": step,
        "ss_max_train_steps": config.steps,
        "ss_epoch": step * batch // per_epoch if per_epoch else 0,
        "ss_num_train_images": per_epoch,
        "ss_batch_size_per_device": config.batch_size,
        "ss_total_batch_size": config.batch_size,
        "ss_gradient_accumulation_steps": config.accumulation,
        "ss_gradient_checkpointing": config.gradient_checkpointing,
        "ss_mixed_precision": {"off": "no"}.get(config.autocast, config.autocast),
        "ss_caption_dropout_rate": config.caption_dropout,
        "ss_seed": config.seed,
    }
    folders = data.get("folders") or [("data", 1, int(data.get("pictures", 0)))]
    facts["ss_dataset_dirs"] = json.dumps(
        {name: {"n_repeats": repeats, "img_count": count} for name, repeats, count in folders}
    )
    facts["ss_tag_frequency"] = json.dumps({"data": data.get("tags", {})})
    return {key: str(value) for key, value in facts.items()}


def of_base_file(base: BaseFile | None) -> dict[str, str]:
    """Name and hashes of the base model's file as sd-scripts writes them; nothing where there is no such file."""
    if base is None or not base.path.is_file():
        return {}
    with base.path.open("rb") as file:  # of a stretch of it, as the first web interfaces named models
        file.seek(0x100000)
        short = hashlib.sha256(file.read(0x10000)).hexdigest()[:8]
    return {
        "ss_sd_model_name": base.name,
        "ss_sd_model_hash": short,
        "ss_new_sd_model_hash": file_sha256(base.path),
    }


def _metadata(
    described: Mapping[str, Any],
    config: TrainConfig,
    step: int,
    history: History,
    parents: Sequence[Mapping[str, Any]],
) -> dict[str, str]:
    """The same from its parts; `described` as in a run folder's ``config.json``."""
    lora, model = config.lora, described["model"]
    totals = [v for v in history.columns.get("total", []) if v == v]
    recent = totals[-50:]
    return {
        "format": FORMAT,
        **modelspec(described, lora),
        **of_sd_scripts(described, config, step),
        "base_model": model["name"],
        "base_fingerprint": model["fingerprint"],
        "rank": str(lora.rank),
        "alpha": f"{lora.alpha:g}",
        "step": str(step),
        "loss": f"{sum(recent) / len(recent):.6g}" if recent else "",
        "dataset_fingerprint": described["data"]["fingerprint"],
        "config": json.dumps(to_plain(config)),
        **({"parents": json.dumps(parents)} if parents else {}),
    }
