"""The trained adapter as a file: named, numbered, with all that made it in its header."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checks import from_plain, to_plain
from ..files import claim_name, partial_path, sealed, sweep_partials, write_tensors
from ..lora.file import MAGNITUDE, NAMES, folded
from ..trainer.config import TrainConfig
from ..trainer.state import History
from .folder import RunFolder
from .run import Run, saved_adapter

FORMAT = "rollout-trainer-1"


def save_lora(run: Run, folder: str | Path, name: str) -> Path:
    """Write the adapter of the state that `run` names to ``<folder>/<name>.safetensors``.

    A file of that name stays as it is: the new one gets a number, ``<name>-2.safetensors`` and so on.

    Raises:
        ValueError: `name` is empty or leaves `folder`.
        RuntimeError: the folder cannot be written.
    """
    return _write(folder, name, lambda path: run.source.save_lora(run.adapter, metadata(run), path))


def save_lora_of_state(run: RunFolder, step: int, folder: str | Path, name: str) -> Path:
    """The same of a saved state, without the model: the file has all that the one of `save_lora` has.

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
    own = renamed(tensors)
    return _write(folder, name, lambda path: write_tensors(path, own, sealed(own, about)))


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
    described = {
        "model": {"name": run.source.name, "fingerprint": run.source.fingerprint},
        "data": {"fingerprint": run.data.fingerprint},
    }
    return _metadata(described, run.config, run.step, run.history, run.parents)


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
        "modelspec.architecture": f"{model['name']}/{lora.kind}",
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
