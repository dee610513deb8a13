"""The runs folder, read for HTTP: what runs there are, and one by its name. Names are untrusted.

A list reads no tensors: file names and sizes, `config.json`, and the JSON beside the newest state. People put other
things into folders: what is no run, or a broken one, is left out by name and is never an error.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..checks import from_plain, to_plain
from ..files import read_json
from ..pictures.film import equally_spaced, frame_path, is_whole, last_frame, read_numbers
from ..pictures.strip import are_whole, read_about, sample_path
from ..trainer.config import TrainConfig
from ..trainer.state import History
from .export import save_lora_of_state
from .folder import RunFolder, sweep
from .live import DRAWN, FILMS, Curve
from .panels import Panels

_BROKEN = (
    ArithmeticError,
    AttributeError,
    IndexError,
    KeyError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What making sense of a file that somebody else wrote may raise."""


def run_path(root: Path, name: str) -> Path:
    """The run folder of that name directly inside `root`.

    Raises:
        LookupError: there is none: not a plain name, a hidden one, a link, or a folder that is no run.
    """
    plain = name and name[0] != "." and Path(name).name == name and not set(name) & set("/\\:\0")
    path = root / name
    try:
        name.encode()
        found = plain and RunFolder(path).exists and path.resolve() == root.resolve() / name
    except (OSError, ValueError):  # a name too long for the disk, or none that it can spell
        found = False
    if not found:
        raise LookupError(f"no run of that name in {root}")
    return path


@dataclass(frozen=True)
class Summary:
    """A run in the list."""

    name: str
    step: int | None
    """Of the newest saved state; None if there is none to resume from."""
    planned: int | None
    """Steps that the run is planned for."""
    loss: float | None
    """Mean of the last steps before the newest state."""
    size: int
    """Bytes on the disk."""
    modified: float
    """When the newest of its files was written, in seconds since 1970."""
    film: int | None
    """Step of its newest film, of which there is a thumbnail."""
    model: str
    training: bool
    """Whether this process trains it now."""


@dataclass(frozen=True)
class Details(Summary):
    """A run that is looked at."""

    path: str
    folder: str
    """The same as a node takes it: from the host's output folder on, so that a workflow names no home."""
    hosted: bool
    """Whether its model is one of ComfyUI's, and not a folder of diffusers."""
    steps: list[int]
    """That have a saved state, ascending."""
    settings: Mapping[str, Any]
    """As in `TrainConfig`; empty where they cannot be read."""
    curve: Mapping[str, list[Any]]
    """As `Curve.plain` gives it."""


@dataclass(frozen=True)
class Runs:
    """All runs of a runs folder, which need not be there yet; plain JSON values."""

    root: Path
    output: Path
    """What a node's relative path starts from."""
    loras: Path
    """Where LoRA files go."""
    _panels: Panels = field(default_factory=Panels, repr=False, compare=False)

    def listed(self) -> dict[str, Any]:
        """`runs`, newest first, as `Summary` has them; `skipped`, the names of folders that are no runs."""
        found, skipped = [], []
        for name in folders(self.root):
            try:
                found.append(summary(run_path(self.root, name)))
            except (LookupError, OSError, RuntimeError):
                skipped.append(name.encode(errors="replace").decode())
        found.sort(key=lambda run: run.modified, reverse=True)
        return {"runs": [asdict(run) for run in found], "skipped": skipped}

    def details(self, name: str) -> dict[str, Any]:
        """A run as `Details` has it.

        Raises:
            LookupError: there is no such run, or none that can be read.
        """
        path = run_path(self.root, name)
        try:
            short = asdict(summary(path))
        except (OSError, RuntimeError) as err:
            raise LookupError(f"no readable run of that name in {self.root}") from err
        folder = RunFolder(path)
        details = Details(
            **short,
            path=str(path),
            folder=path.relative_to(self.output).as_posix(),
            hosted=look(folder.config(), "model", "lora_names") == "comfyui",
            steps=folder.steps(),
            settings=settings(folder),
            curve=curve(folder),
        )
        return asdict(details)

    def thumbnail(self, name: str) -> Path:
        """The last picture of the newest film.

        Raises:
            LookupError: there is no such run, or no film of it.
        """
        run = RunFolder(run_path(self.root, name))
        last = last_frame(run.film_folder(newest_film(run) or 0))
        if last is None or not last.resolve().is_relative_to(run.path.resolve()):
            raise LookupError(f"no film of that run in {self.root}")
        return last

    def films(self, name: str) -> list[dict[str, Any]]:
        """What the films of a run measured, in order, as `read_numbers` has it; of more than `FILMS` not all.

        Raises:
            LookupError: there is no such run.
        """
        run = RunFolder(run_path(self.root, name))
        return _told(run.film_steps(), lambda step: read_numbers(run.film_folder(step)))

    def frame(self, name: str, step: int, number: int) -> Path:
        """The picture of a frame of a whole film.

        Raises:
            LookupError: there is none inside the folder of such a run.
        """
        run = RunFolder(run_path(self.root, name))
        folder = run.film_folder(step)
        path = frame_path(folder, number)
        if not (_is_file_of(run, path) and is_whole(folder)):
            raise LookupError(f"no frame {number} of step {step}")
        return path

    def samples(self, name: str) -> list[dict[str, Any]]:
        """What was drawn of the user's prompts, in the order of the steps; of more than `FILMS` not all.

        Raises:
            LookupError: there is no such run.
        """
        run = RunFolder(run_path(self.root, name))
        return _told(run.sample_steps(), lambda step: read_about(run.samples_folder(step)))

    def sample(self, name: str, step: int, number: int) -> Path:
        """The picture of a prompt.

        Raises:
            LookupError: there is none inside the folder of such a run.
        """
        run = RunFolder(run_path(self.root, name))
        folder = run.samples_folder(step)
        path = sample_path(folder, number)
        if not (_is_file_of(run, path) and are_whole(folder)):
            raise LookupError(f"no picture {number} of step {step}")
        return path

    def panels(self, workflow: str) -> dict[str, dict[str, Any]]:
        """What the panels of a workflow showed last, by node."""
        return self._panels.of(self.root, workflow)

    def remove(self, name: str) -> None:
        """Delete a run.

        Raises:
            LookupError: there is no such run.
            RuntimeError: it is being trained, or the disk refuses.
        """
        RunFolder(run_path(self.root, name)).remove()

    def save_lora(self, name: str, step: int) -> str:
        """Write the LoRA of a saved state; the file's name among the LoRA files.

        Raises:
            LookupError: there is no such run, or it has no such state.
            ValueError: it cannot be made without the model.
            RuntimeError: the state cannot be read, or the folder not be written.
        """
        run = RunFolder(run_path(self.root, name))
        if step not in run.steps():
            raise LookupError(f"no saved state of step {step}")
        try:
            path = save_lora_of_state(run, step, self.loras, f"{name}-step-{step}")
        except (KeyError, TypeError) as err:  # somebody else wrote its config.json
            raise LookupError(f"no readable run of that name in {self.root}") from err
        return path.relative_to(self.loras.resolve()).as_posix()

    def sweep(self) -> None:
        """Finish deletions that were interrupted."""
        sweep(self.root)


def _told(steps: Sequence[int], read: Callable[[int], dict[str, Any]]) -> list[dict[str, Any]]:
    """What ``read(step)`` gives of the steps, `FILMS` of them at most, equally spaced; what cannot be read is out."""
    found = []
    for i in equally_spaced(len(steps), FILMS):
        with suppress(*_BROKEN):
            found.append(read(steps[i]))
    return found


def _is_file_of(run: RunFolder, path: Path) -> bool:
    """Whether `path` is a file that lies in the run's folder, and no link that leads out of it."""
    return path.resolve().is_relative_to(run.path.resolve()) and path.is_file()


def folders(root: Path) -> list[str]:
    """Names of the folders, and of the links to folders, that are directly in `root` and not hidden."""
    with suppress(FileNotFoundError), os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if entry.name[0] != "." and entry.is_dir())
    return []


def summary(path: Path) -> Summary:
    """What the list says of the run at `path`.

    Raises:
        OSError: the folder cannot be read.
        RuntimeError: there is no config.json of our version.
    """
    folder = RunFolder(path)
    config, steps, files = folder.config(), folder.steps(), list(everything(path))
    newest = steps[-1] if steps else None
    return Summary(
        name=path.name,
        step=newest,
        planned=whole(look(config, "config", "steps")),
        loss=None if newest is None else saved_loss(folder.values_path(newest)),
        size=sum(info.st_size for info in files),
        modified=max((info.st_mtime for info in files), default=0.0),
        film=newest_film(folder),
        model=str(look(config, "model", "name") or ""),
        training=folder.is_held,
    )


def everything(path: Path) -> Iterator[os.stat_result]:
    """All files below `path`; links are not followed, and what vanishes meanwhile was never there."""
    with suppress(FileNotFoundError), os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from everything(Path(entry.path))
            else:
                with suppress(FileNotFoundError):
                    yield entry.stat(follow_symlinks=False)


def saved_loss(path: Path) -> float | None:
    """The mean of the last losses in the JSON beside a state, of older ones the last; None if it has none."""
    try:
        values = read_json(path, path.parent)
        losses = [loss for name in ("mean_loss", "loss") if is_number(loss := look(values, name))]
        return float(losses[0]) if losses else None
    except _BROKEN:
        return None


def newest_film(run: RunFolder) -> int | None:
    """The last step that a whole film was made of, None if there is none."""
    return max(run.film_steps(), default=None)


def settings(folder: RunFolder) -> Mapping[str, Any]:
    """The settings with the defaults of those that are not written; empty where they are not ours."""
    try:
        known = to_plain(from_plain(TrainConfig, folder.config()["config"]))
        json.dumps(known, allow_nan=False)
    except _BROKEN:
        return {}
    return known


def curve(folder: RunFolder) -> Mapping[str, list[Any]]:
    """The curve that the panel showed if it goes as far as the states do, else that of the newest whole state."""
    steps = folder.steps()
    with suppress(*_BROKEN):
        told = folder.panel()
        if told["step"] >= max(steps, default=0) and is_curve(told["curve"]):
            return {name: told["curve"][name] for name in ("step", *DRAWN)}
    for step in reversed(steps):
        with suppress(*_BROKEN):
            history = History.from_tensors(folder.load(step, "history").group("history"))
            return Curve.of(history, step).plain()
    return Curve().plain()


def is_curve(value: Any) -> bool:
    """Whether `value` is what `Curve.plain` gives: columns of one length, of numbers and of null."""
    columns = [look(value, name) for name in ("step", *DRAWN)]
    if not all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
        return False
    return all(map(is_number, columns[0])) and all(v is None or is_number(v) for c in columns for v in c)


def look(value: Any, *names: str) -> Any:
    """What lies in nested mappings under `names`, None if nothing does."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def is_number(value: Any) -> bool:
    """Whether JSON can say `value` as a number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def whole(value: Any) -> int | None:
    """`value` if it is a whole number."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None
