"""Runs: started, trained on, opened again, validated; a handle names one saved state."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ...messages import OutOfRAMError, one_line, without_words
from ..checks import from_plain, to_plain
from ..data.dataset import LatentDataset
from ..data.holdout import hold_out
from ..lora.adapter import AdapterState
from ..models.source import LoadedModel, ModelSource
from ..pictures.film import Film
from ..pictures.sampling import Drawing
from ..pictures.strip import write_samples
from ..trainer.config import TrainConfig, check_validation, resolved
from ..trainer.meter import Stopwatch
from ..trainer.ranks import Ranks, joined
from ..trainer.state import History, RunState
from ..trainer.trainer import StepReport, Trainer, training_mode
from .doubts import LOOKED_AT, Losses, before_the_first_step, of_the_weights
from .folder import RunFolder
from .saving import Saver

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A handle on one state of a run. It never changes: training on from it gives a new handle."""

    folder: RunFolder
    step: int
    """Optimiser steps done in the state that this handle names."""
    source: ModelSource
    data: LatentDataset
    """What is trained on, without what the run holds out."""
    config: TrainConfig
    validation: LatentDataset | None = None
    """What the validation loss is measured on: given, or held out by the run itself."""

    @property
    def parents(self) -> list[dict[str, Any]]:
        """What the run branched from, oldest first: ``run``, ``step``, ``state`` and ``config`` of each."""
        parents: list[dict[str, Any]] = self.folder.config().get("parents", [])
        return parents

    @property
    def state(self) -> RunState:
        """The state itself, from the disk."""
        return self.folder.load(self.step)

    @property
    def history(self) -> History:
        """What was measured up to this state."""
        return History.from_tensors(self.folder.load(self.step, "history").group("history"))

    @property
    def adapter(self) -> AdapterState:
        """The adapter in this state; its moving average where the run keeps one."""
        return saved_adapter(self.folder, self.step, self.config)

    @property
    def model(self) -> LoadedModel:
        """The base with the adapter of this state."""
        return LoadedModel(self.source, self.adapter)


Watch = Callable[[StepReport], None]
"""Called after every optimiser step; to stop the run it raises, and the state is saved first."""

Ask = Literal["save", "preview", "finish"]
"""What a watcher may ask for between two steps: the state on the disk, a film, that the stage ends here."""

Asked = Callable[[], Collection[Ask]]
"""What was asked for since it was last called."""


@dataclass
class Stage:
    """A run with its trainer in memory, from `starting` or `resuming`; it trains on as often as it is told to."""

    run: Run
    """The state that the trainer stands at."""
    trainer: Trainer
    drawing: Drawing | None = None
    """The user's prompts, drawn as it starts and as often as they say."""
    _saver: Saver = field(init=False)

    def __post_init__(self) -> None:
        self._saver = Saver(self.run.folder)

    def train(self, steps: int, watch: Watch | None = None, asked: Asked = tuple) -> Run:
        """Train on for `steps` optimiser steps.

        Whatever ends this early, a stop from `watch` above all, the state is saved first and the log says where.

        Args:
            watch: called after every optimiser step.
            asked: called after every optimiser step; what it names is done before `watch` is called. "finish" makes
                this step the last one.

        Returns:
            A handle on the new state, which is saved. Where the run keeps its best moment and has ended, by its planned
            steps, because the validation loss did not fall any more, or as asked: a handle on that.

        Raises:
            FloatingPointError: the loss stayed non-finite; the last good state is saved.
            OutOfRAMError: the computer's memory ran out; the last state is saved.
        """
        trainer = self.trainer
        trainer.compile()
        try:
            finished = self._train(steps, watch, asked)
        except BaseException as err:
            with trainer.ranks.leaving(err):
                if trainer.ranks.first:
                    path = self._save()
                    logger.info("stopped at step %d; saved %s", trainer.done, path)
            if without_words(err):
                raise OutOfRAMError(f"in step {trainer.done + 1}; step {trainer.done} is saved") from err
            raise
        trainer.ranks.from_first(self._save)
        self.run = replace(self.run, step=trainer.done)
        ended = finished or trainer.ended or trainer.done >= self.run.config.steps
        return self.best() if ended else self.run

    def _save(self) -> Path:
        """Save the state that a handle names, after what is being written."""
        self._saver.finish()
        return self.run.folder.save(self.trainer.state(), pinned=True)

    def best(self) -> Run:
        """A handle on the best moment so far; on the state that the trainer stands at where the run keeps none."""
        best = self.trainer.best
        if not self.run.config.patience or best.step == 0:
            return self.run
        try:
            self.trainer.ranks.from_first(lambda: self.run.folder.pin(best.step))
        except RuntimeError as err:
            logger.warning("step %d had the least validation loss, but its state is gone: %s", best.step, err)
            return self.run
        return replace(self.run, step=best.step)

    def _train(self, steps: int, watch: Watch | None, asked: Asked) -> bool:
        """Every optimiser step, and what is due after it: validation, a saved state, a film, a report.

        Returns:
            Whether somebody asked to finish.
        """
        config, trainer = self.run.config, self.trainer
        film, drawn = self._first_film(), self._first_drawing()
        doubts = Doubts(trainer, steps)
        clock, before, saved_at = Stopwatch(), 0.0, time.monotonic()
        for n in range(1, steps + 1):
            if trainer.ended:
                logger.info("%s", self._why_ended())
                break
            with rewound(trainer):
                report = trainer.step()
            doubts.look(n)
            improved = self._validate()
            elapsed = clock.seconds()
            trainer.seconds, before = trainer.seconds + elapsed - before, elapsed
            requested = asked()
            late = 0 < 60 * config.save_minutes <= time.monotonic() - saved_at
            wanted = late or "save" in requested or improved or due(config.save_every, trainer.done)
            save_now = n < steps and wanted
            if save_now:
                saved_at = time.monotonic()
                self._save_midway(pinned="save" in requested)
            if "preview" in requested or due(config.preview_every, trainer.done):
                with clock.paused():
                    film = self._film()
            if self.drawing is not None and due(self.drawing.prompts.every, trainer.done):
                with clock.paused():
                    drawn = self._draw(self.drawing)
            if watch is not None:
                row, seconds = trainer.history.newest(), trainer.meter.seconds
                report = replace(report, steps_per_second=n / elapsed, row=row, seconds=seconds)
                report = replace(report, best=trainer.best if trainer.best.step else None)
                saved = self._saver.saved()
                watch(replace(report, saved=saved, film=film, drawn=drawn, doubts=doubts.told))
                film, drawn = None, False
            if trainer.ranks.any("finish" in requested):
                logger.info("finished at step %d, as asked", trainer.done)
                return True
        return False

    def _validate(self) -> bool:
        """Measure the validation loss if it is due; whether this is the best moment so far."""
        config, trainer, data = self.run.config, self.trainer, self.run.validation
        last = config.patience > 0 and trainer.done == config.steps
        if data is None or not (last or due(config.validate_every, trainer.done)):
            return False
        return trainer.note_validation(data)

    def _why_ended(self) -> str:
        """In words, why no step is trained any more."""
        best, patience = self.trainer.best, self.run.config.patience
        return (
            f"ended at step {self.trainer.done}: the validation loss has not fallen for {patience} measurements; "
            f"it was least at step {best.step}, {best.loss:.5f}"
        )

    def _first_film(self) -> Film | None:
        """A film of where the stage starts, if films are asked for and the run has none of this step."""
        missing = self.run.step not in self.run.folder.film_steps()
        return self._film() if self.run.config.preview_every and missing else None

    def _film(self) -> Film | None:
        """A film, in the run's folder too; one that fails is a line in the log, and the training goes on without it."""
        if not self.trainer.ranks.first:
            return None
        try:
            film = self.trainer.take_film()
            film.write(self.run.folder.film_folder(film.step))
        except Exception as err:  # out of memory, a decoder's error, a full disk: none is worth a run
            logger.warning("no film of step %d: %s", self.trainer.done, err)
            return None
        return film

    def _first_drawing(self) -> bool:
        """The user's prompts where the stage starts, if the run has not drawn them there; whether it did."""
        drawing = self.drawing
        return (
            drawing is not None
            and self.run.step not in self.run.folder.sample_steps()
            and self._draw(drawing)
        )

    def _draw(self, drawing: Drawing) -> bool:
        """Pictures of the user's prompts, in the run's folder; a line in the log if that fails. Whether it did not."""
        step = self.trainer.done
        if not self.trainer.ranks.first:
            return False
        try:
            pixels = self.trainer.draw(drawing)
            write_samples(self.run.folder.samples_folder(step), step, drawing.prompts.prompts, pixels)
        except Exception as err:  # as of a film
            logger.warning("no pictures of your prompts at step %d: %s", step, err)
            return False
        return True

    def _save_midway(self, pinned: bool) -> None:
        """Begin to save the state, which is written while the stage goes on."""
        if self.trainer.ranks.first:
            self._saver.save(self.trainer.snapshot(), pinned, self.run.config.keep)


class Doubts:
    """Says, once each, that a stage does not seem to learn: in the log, and to whoever watches."""

    def __init__(self, trainer: Trainer, steps: int) -> None:
        self.trainer = trainer
        self.steps = steps
        self.losses = Losses(trainer.history)
        self.weights = [p.detach().clone() for p in trainer.parameters]
        self.said: set[str] = set()
        self.told: tuple[str, ...] = tuple(before_the_first_step(trainer.config, trainer.done, steps))
        """What was said so far."""
        for text in self.told:
            logger.warning("%s", text)

    def look(self, n: int) -> None:
        """Look after the stage's n-th step."""
        if n in (LOOKED_AT, self.steps):
            text = of_the_weights(self.weights, self.trainer.parameters, n)
            if text is not None:
                self.say("still", text)
        if n % LOOKED_AT == 0 or n == self.steps:
            for kind, text in self.losses.told().items():
                self.say(kind, text)

    def say(self, kind: str, text: str) -> None:
        """One line in the log, once."""
        if kind not in self.said:
            self.said.add(kind)
            self.told += (text,)
            logger.warning("step %d: %s", self.trainer.done, text)


TAGS = 5000
"""Most tags of a dataset that a run keeps, the most frequent first."""


def about(data: LatentDataset) -> dict[str, Any]:
    """What a LoRA file tells of its data: how many pictures, how often in an epoch, each tag, which folders."""
    captions = [caption for bucket in data.buckets for caption in bucket.captions]
    tags = Counter(tag.strip() for caption in captions for tag in caption.split(",") if tag.strip())
    return {
        "pictures": len(data),
        "samples_per_epoch": data.samples_per_epoch,
        "tags": dict(tags.most_common(TAGS)),
        "folders": data.folders,
    }


@contextmanager
def starting(
    root: str | Path,
    name: str,
    source: ModelSource,
    data: LatentDataset,
    config: TrainConfig,
    validation: LatentDataset | None = None,
    adapter: AdapterState | None = None,
) -> Iterator[Stage]:
    """A new run in a folder ``<name>-<number>`` of its own below `root`, ready to train; its first state is saved.

    Args:
        root: folder of runs; made if it is not there.
        source: the base model. It is as it was after the block.
        data: what is trained on; a share of it is set aside where `config.hold_out` says so.
        config: all settings; they are written into the folder.
        validation: what the validation loss is measured on, every `config.validate_every` steps.
        adapter: weights to begin with, as of a LoRA file; None begins with a fresh adapter.

    Raises:
        ValueError: settings, model and data that do not go together, or a name that is no file name.
        RuntimeError: the folder cannot be written, or the optimiser's package is not installed.
    """
    config = resolved(config, source)
    check_validation(config, validation is not None)
    described = described_by(config, source, data)
    ranks = joined(source.device)
    ranks.same({**described, "step": 0})
    data, validation = parted(data, config, validation)
    with training_mode(), Trainer(source, data, config, adapter, ranks) as trainer:
        path = ranks.from_first(lambda: str(_created(Path(root), name, described, trainer).path))
        folder = RunFolder(Path(path))
        with _held(folder, ranks):
            yield Stage(Run(folder, 0, source, data, config, validation), trainer)


def parted(
    data: LatentDataset, config: TrainConfig, validation: LatentDataset | None
) -> tuple[LatentDataset, LatentDataset | None]:
    """What a run trains on and what it validates on, of the data that it is given."""
    return hold_out(data, config.hold_out) if config.hold_out else (data, validation)


@contextmanager
def resuming(run: Run) -> Iterator[Stage]:
    """The state that `run` names, in memory and ready to train on.

    Raises:
        ValueError: the run ends by its validation loss, and the handle has nothing to measure that on.
        RuntimeError: the state is gone or cannot be read, or the optimiser's package is not installed.
    """
    if run.config.patience and run.validation is None:
        raise ValueError(
            f"validation must be connected to go on with {run.folder.path.name}, got none; its patience ends it by the "
            "loss on those pictures"
        )
    ranks = joined(run.source.device)
    ranks.same({**described_by(run.config, run.source, run.data), "step": run.step})
    with (
        training_mode(),
        _held(run.folder, ranks),
        Trainer(run.source, run.data, run.config, None, ranks) as trainer,
    ):
        state = run.state
        try:
            trainer.load(state)
        except (KeyError, IndexError, TypeError, AttributeError, RuntimeError, ValueError) as err:
            raise RuntimeError(
                f"{run.folder.state_path(run.step)} must be a whole state of this run, got {one_line(err)}; resume "
                "from another step"
            ) from err
        yield Stage(run, trainer)


def described_by(config: TrainConfig, source: ModelSource, data: LatentDataset) -> dict[str, Any]:
    """What a run folder's ``config.json`` says of a run."""
    return {
        "config": to_plain(config),
        "model": {
            "name": source.name,
            "fingerprint": source.fingerprint,
            "lora_names": source.lora_names,
            "family": getattr(
                source, "family", source.name
            ),  # a host's name of a model is that of its family
        },
        "data": {"fingerprint": data.fingerprint, **about(data)},
    }


def _created(root: Path, name: str, described: dict[str, Any], trainer: Trainer) -> RunFolder:
    """A new run folder with its first state."""
    folder = RunFolder.create(root, name, described)
    folder.save(trainer.state(), pinned=True)
    return folder


@contextmanager
def _held(folder: RunFolder, ranks: Ranks) -> Iterator[None]:
    """The folder held by the one rank that writes into it; the others must see it.

    Raises:
        RuntimeError: one does not.
    """
    if not folder.exists:
        raise RuntimeError(
            f"{folder.path} must be on a disk that all ranks share, rank {ranks.rank} does not see it; give --out a "
            "folder that all machines have"
        )
    with folder.held() if ranks.first else nullcontext():
        yield


def start(
    root: str | Path,
    name: str,
    source: ModelSource,
    data: LatentDataset,
    config: TrainConfig,
    validation: LatentDataset | None = None,
    adapter: AdapterState | None = None,
) -> Run:
    """A handle on the first state of a new run, nothing trained yet; arguments and errors are those of `starting`."""
    with starting(root, name, source, data, config, validation, adapter) as stage:
        return stage.run


def train(run: Run, steps: int, watch: Watch | None = None, asked: Asked = tuple) -> Run:
    """Train on from the state that `run` names; arguments, result and errors are those of `Stage.train`."""
    with resuming(run) as stage:
        return stage.train(steps, watch, asked)


def validate(run: Run, data: LatentDataset) -> float:
    """Validation loss of the state that `run` names, on other data."""
    with training_mode(), Trainer(run.source, run.data, run.config) as trainer:
        trainer.load(run.state)
        return trainer.validate(data)


def reopen(
    path: str | Path,
    source: ModelSource,
    data: LatentDataset,
    step: int = -1,
    validation: LatentDataset | None = None,
) -> Run:
    """A handle on a saved state of an earlier run; the last one by default.

    Args:
        path: the run's folder.
        source: the base model that it was trained on.
        data: the data that it was trained on.
        step: optimiser steps done in the state; -1 is the last one.
        validation: as in `starting`.

    Raises:
        RuntimeError: no such state.
        ValueError: the run was made with another model or other data.
    """
    path = Path(path)
    folder = RunFolder(path)
    described = folder.config()
    try:
        made_with = {what: described[what]["fingerprint"] for what in ("model", "data")}
        config = from_plain(TrainConfig, described["config"])
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as err:
        raise RuntimeError(
            f"{path} must have the settings of a run, got {one_line(err)}; it is damaged"
        ) from err
    for what, own in (("model", source.fingerprint), ("data", data.fingerprint)):
        if made_with[what] != own:
            raise ValueError(
                f"{what} must be the one that {path.name} was trained with; load that, or start a new run"
            )
    steps = folder.steps()
    if not steps:
        raise RuntimeError(f"{path} must hold a saved state, it has none; start a new run")
    data, validation = parted(data, config, validation)
    return Run(folder, steps[-1] if step < 0 else step, source, data, config, validation)


def saved_adapter(folder: RunFolder, step: int, config: TrainConfig) -> AdapterState:
    """The adapter in a saved state; its moving average where the run keeps one."""
    group = "average" if config.ema_decay else "adapter"
    return AdapterState(config.lora, folder.load(step, group).group(group))


def due(every: int, step: int) -> bool:
    """Whether what happens every so many steps, 0 is never, happens after `step`."""
    return bool(every) and step % every == 0


@contextmanager
def rewound(trainer: Trainer) -> Iterator[None]:
    """If the step inside fails, the trainer stands where the step started."""
    try:
        yield
    except BaseException:
        trainer.rewind()
        raise
