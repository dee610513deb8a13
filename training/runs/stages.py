"""A stage with other settings: a run folder of its own that begins with a copy of the state it branches from.

A folder's ``config.json`` says what every step saved in it was trained with, but for the steps of its `parents`. So
settings never change within a folder: the branch gets ``<parent>-<number>``, and two branches of one state cannot
overwrite each other's states.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checks import to_plain
from ..files import digest
from ..objective.config import RolloutConfig
from ..trainer.config import TrainConfig
from ..trainer.ranks import joined
from ..trainer.state import RunState
from .folder import RunFolder
from .run import Run


def branch(
    run: Run, rollout: RolloutConfig | None = None, learning_rate: float | None = None, steps: int = 0
) -> Run:
    """A handle on the state of `run`, to train on from with other settings; `run` itself if they are its own.

    The same branch of the same state is made once: asked for again, its folder is found again.

    Args:
        rollout: its steps (``start_step``, ``ramp_steps``) count from here; None keeps the run's own.
        learning_rate: the peak rate, with a schedule of its own over the stage; None keeps the run's own, schedule
            included.
        steps: of the stage, over which that schedule runs; 0: up to the run's planned steps.

    Raises:
        RuntimeError: the place cannot be written.
    """
    config = _changed(run, rollout, learning_rate, steps)
    if config == run.config:
        return run
    state = run.state
    if config.rollout != run.config.rollout:  # states of the old rollouts are not what the new ones ask for
        state = replace(state, tensors={k: v for k, v in state.tensors.items() if not k.startswith("pool.")})
    path = joined(run.source.device).from_first(lambda: str(_saved(run, config, state).path))
    return replace(run, folder=RunFolder(Path(path)), config=config)


def _saved(run: Run, config: TrainConfig, state: RunState) -> RunFolder:
    """The branch's folder, with the state in it."""
    folder = _folder(run, config, state)
    if run.step not in folder.steps():
        folder.save(state, pinned=True)
    return folder


def _changed(run: Run, rollout: RolloutConfig | None, learning_rate: float | None, steps: int) -> TrainConfig:
    """The settings of the stage; the run's own where nothing differs."""
    config = run.config
    if learning_rate is not None and (learning_rate != config.optimizer.lr or run.step >= config.lr_ends):
        own = replace(config.optimizer, lr=learning_rate)
        config = replace(config, optimizer=own, lr_from=run.step, lr_steps=steps)
    if rollout is not None and rollout != config.rollout:
        config = replace(config, rollout=rollout, rollout_from=run.step)
    return config


def _folder(run: Run, config: TrainConfig, state: RunState) -> RunFolder:
    """The branch's folder: the one that was made for it before, or a new one."""
    own = run.folder.config()
    parent: dict[str, Any] = {
        "run": run.folder.path.name,
        "step": run.step,
        "state": digest(state.tensors.items(), sample=None),
        "config": own["config"],
    }
    described = own | {"config": to_plain(config), "parents": [*own.get("parents", []), parent]}
    root, name = run.folder.path.parent, run.folder.path.name
    return RunFolder.find(root, name, described) or RunFolder.create(root, name, described)
