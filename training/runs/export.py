"""The trained adapter as a file: named, numbered, with all that made it in its header."""

from __future__ import annotations

import json
from pathlib import Path

from ..checks import to_plain
from .run import Run

FORMAT = "rollout-trainer-1"


def save_lora(run: Run, folder: str | Path, name: str) -> Path:
    """Write the adapter of the state that `run` names to ``<folder>/<name>.safetensors``.

    A file of that name stays as it is: the new one gets a number, ``<name>-2.safetensors`` and so on.

    Raises:
        ValueError: `name` is empty or leaves `folder`.
        RuntimeError: the folder cannot be written.
    """
    folder = Path(folder)
    target = (folder / name).resolve()
    if not name.strip() or not target.is_relative_to(folder.resolve()) or target == folder.resolve():
        raise ValueError(
            f"filename must be a name inside {folder.name}, got {name!r}; leave out leading .. and /"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        path = free_path(target)
        run.source.save_lora(run.adapter, metadata(run), path)
    except OSError as err:
        raise RuntimeError(f"the LoRA folder {folder} must be writable, got {err.strerror}") from err
    return path


def free_path(target: Path) -> Path:
    """``target.safetensors``, or the first numbered name after it that is not taken."""
    number, path = 1, target.with_name(f"{target.name}.safetensors")
    while path.exists():
        number += 1
        path = target.with_name(f"{target.name}-{number}.safetensors")
    return path


def metadata(run: Run) -> dict[str, str]:
    """What a reader of the file needs to know where it comes from; plain strings, as the format asks."""
    lora, history = run.config.lora, run.history
    totals = [v for v in history.columns.get("total", []) if v == v]
    recent = totals[-50:]
    return {
        "format": FORMAT,
        "modelspec.architecture": f"{run.source.name}/{lora.kind}",
        "base_model": run.source.name,
        "base_fingerprint": run.source.fingerprint,
        "rank": str(lora.rank),
        "alpha": f"{lora.alpha:g}",
        "step": str(run.step),
        "loss": f"{sum(recent) / len(recent):.6g}" if recent else "",
        "dataset_fingerprint": run.data.fingerprint,
        "config": json.dumps(to_plain(run.config)),
        **({"parents": json.dumps(run.parents)} if run.parents else {}),
    }
