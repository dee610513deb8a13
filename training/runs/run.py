"""Runs: started, trained on, opened again, validated; a handle names one saved state."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..checks import from_plain, to_plain
from ..data.dataset import LatentDataset
from ..lora.adapter import AdapterState
from ..models.source import LoadedModel, ModelSource
from ..pictures.film import Film
from ..trainer.config import TrainConfig, resolved
from ..trainer.meter import Stopwatch
from ..trainer.state import History, State
from ..trainer.trainer import Progress, Trainer, logger, training_mode
from .folder import RunFolder


@dataclass(frozen=True)
class Run:
    """A handle on one state of a run. It never changes: training on from it gives a new handle."""

    folder: RunFolder
    step: int
    """Optimiser steps done in the state that this handle names."""
    source: ModelSource
    data: LatentDataset
    config: TrainConfig
    validation: LatentDataset | None = None

    @property
    def parents(self) -> list[dict[str, Any]]:
        """What the run branched from, oldest first: ``run``, ``step``, ``state`` and ``config`` of each."""
        parents: list[dict[str, Any]] = self.folder.config().get("parents", [])
        return parents

    @property
    def state(self) -> State:
        """The state itself, from the disk."""
        return self.folder.load(self.step)

    @property
    def history(self) -> History:
        """What was measured up to this state."""
        return History.from_tensors(self.folder.load(self.step, "history").group("history"))

    @property
    def adapter(self) -> AdapterState:
        """The adapter in this state; its moving average where the run keeps one."""
        group = "average" if self.config.ema_decay else "adapter"
        return AdapterState(self.config.lora, self.folder.load(self.step, group).group(group))

    @property
    def model(self) -> LoadedModel:
        """The base with the adapter of this state."""
        return LoadedModel(self.source, self.adapter)


Watch = Callable[[Progress], None]
"""Called after every optimiser step; to stop the run it raises, and the state is saved first."""


Ask = Literal["save", "preview"]
"""What a watcher may ask for between two steps: the state on the disk, a film."""


Asked = Callable[[], Collection[Ask]]
"""What was asked for since it was last called."""


def start(
    root: Path,
    name: str,
    source: ModelSource,
    data: LatentDataset,
    config: TrainConfig,
    validation: LatentDataset | None = None,
    adapter: AdapterState | None = None,
) -> Run:
    """Make a run folder and save the state before the first step.

    Args:
        adapter: weights to begin with, as of a LoRA file; None begins with a fresh adapter.
    """
    config = resolved(config, source)
    described = {
        "config": to_plain(config),
        "model": {"name": source.name, "fingerprint": source.fingerprint},
        "data": {"fingerprint": data.fingerprint},
    }
    with training_mode(), Trainer(source, data, config) as trainer:
        if adapter is not None:
            trainer.adapter.load(adapter)
        folder = RunFolder.create(root, name, described)
        folder.save(trainer.state(), pinned=True)
    return Run(folder, 0, source, data, config, validation)


def validate(run: Run, data: LatentDataset) -> float:
    """Validation loss of the state that `run` names, on other data."""
    with training_mode(), Trainer(run.source, run.data, run.config) as trainer:
        trainer.load(run.state)
        return trainer.validate(data)


def reopen(
    path: Path,
    source: ModelSource,
    data: LatentDataset,
    step: int = -1,
    validation: LatentDataset | None = None,
) -> Run:
    """A handle on a saved state of an earlier run; the last one by default.

    Raises:
        RuntimeError: no such state.
        ValueError: the run was made with another model or other data.
    """
    folder = RunFolder(path)
    described = folder.config()
    for what, own in (("model", source.fingerprint), ("data", data.fingerprint)):
        if described[what]["fingerprint"] != own:
            raise ValueError(
                f"{what} must be the one that {path.name} was trained with; load that, or start a new run"
            )
    steps = folder.steps()
    if not steps:
        raise RuntimeError(f"{path} must hold a saved state, it has none; start a new run")
    config = from_plain(TrainConfig, described["config"])
    return Run(folder, steps[-1] if step < 0 else step, source, data, config, validation)


def train(run: Run, steps: int, watch: Watch | None = None, asked: Asked = tuple) -> Run:
    """Train on from the state that `run` names for `steps` optimiser steps; return a handle on the new state.

    Whatever ends the stage early, a stop from `watch` above all, the state is saved first and the log says where.

    Args:
        asked: called after every optimiser step; what it names is done before `watch` is called.

    Raises:
        FloatingPointError: the loss stayed non-finite; the last good state is saved.
    """
    config = run.config
    with training_mode(), run.folder.held(), Trainer(run.source, run.data, config) as trainer:
        trainer.load(run.state)
        first = config.preview_every and run.step not in run.folder.film_steps()
        film = filmed(run, trainer) if first else None
        clock, last = Stopwatch(), 0.0
        try:
            for n in range(1, steps + 1):
                with rewound(trainer):
                    progress = trainer.step()
                if run.validation is not None and due(config.validate_every, trainer.done):
                    trainer.history.note("validation", trainer.validate(run.validation))
                now = clock.seconds()
                trainer.seconds += now - last
                last = now
                asks = asked()
                wanted = n < steps and ("save" in asks or due(config.save_every, trainer.done))
                saved = wanted and saved_midway(run, trainer, pinned="save" in asks)
                if "preview" in asks or due(config.preview_every, trainer.done):
                    with clock.paused():
                        film = filmed(run, trainer)
                if watch is not None:
                    rate, seconds = n / now, trainer.meter.seconds()
                    row = trainer.history.newest()
                    told = replace(progress, steps_per_second=rate, row=row, seconds=seconds)
                    watch(replace(told, saved=saved, film=film))
                    film = None
        except BaseException:
            path = run.folder.save(trainer.state(), pinned=True)
            logger.info("stopped at step %d; saved %s", trainer.done, path)
            raise
        run.folder.save(trainer.state(), pinned=True)
        return replace(run, step=trainer.done)


def due(every: int, step: int) -> bool:
    """Whether what happens every so many steps, 0 is never, happens after `step`."""
    return bool(every) and step % every == 0


def saved_midway(run: Run, trainer: Trainer, pinned: bool) -> bool:
    """Save the state while the stage goes on; whether the disk took it.

    If it did not, that is a line in the log: ending the stage would lose every step since the last save, and going on
    leaves time to free space before its end.
    """
    try:
        run.folder.save(trainer.state(), pinned=pinned, keep=run.config.keep)
    except RuntimeError as err:
        logger.warning("step %d not saved, training goes on: %s", trainer.done, err)
        return False
    return True


def filmed(run: Run, trainer: Trainer) -> Film | None:
    """A film, in the run's folder too; one that fails is a line in the log, and the training goes on without it."""
    try:
        film = trainer.film()
        film.write(run.folder.film_folder(film.step))
    except Exception as err:  # out of memory, a decoder's error, a full disk: none is worth a run
        logger.warning("no film of step %d: %s", trainer.done, err)
        return None
    return film


@contextmanager
def rewound(trainer: Trainer) -> Iterator[None]:
    """If the step inside fails, the trainer stands where the step began."""
    try:
        yield
    except BaseException:
        trainer.rewind()
        raise
