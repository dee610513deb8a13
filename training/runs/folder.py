"""A run on disk: a folder with its settings and its states, each state whole or absent.

``config.json`` says what the run is; ``state-<step>.safetensors`` holds everything a step needs to go on
(tensors by name, plain values as JSON in the header); ``state-<step>.json`` repeats the plain values for people
and tools. ``film/step-<step>/`` holds a film each, ``samples/step-<step>/`` pictures of the user's prompts,
``panel.json`` what a panel showed last. Nothing else knows these
names. A state is one file that appears under its name only when it is complete and on the disk, so a process
killed at any moment leaves whole states behind and nothing else that counts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...messages import one_line
from ..files import digest, is_full, read_json, sweep_partials, tensor_file, write_atomically, write_json
from ..pictures.film import is_whole
from ..pictures.strip import are_whole
from ..trainer.state import RunState
from .lock import RunLock

VERSION = 1
DELETED = ".deleted-"
"""How the name of a folder begins that was a run; whatever is in it may go at any time."""
_CONFIG, _PANEL, _FILMS, _SAMPLES, _EVENTS = "config.json", "panel.json", "film", "samples", "tensorboard"
_WORKFLOW = "workflow.json"
_FILM = re.compile(r"step-(\d{8,})")
_STATE = re.compile(r"state-(\d{8,})\.safetensors")
_UNREADABLE = (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError)
"""What reading a file that is no state, or only a part of one, may raise."""
_LOCK = ".lock"
"""In the folder of a run while a process trains it: no other process may."""
_held: dict[Path, list[RunLock]] = {}
_guard = Lock()
"""Of `_held`: a run is not deleted while it is being opened, nor opened while it is being deleted."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    @classmethod
    def create(cls, root: Path, name: str, config: Mapping[str, Any]) -> RunFolder:
        """Make a new folder ``<name>-<number>`` below `root` and write its ``config.json``.

        Raises:
            ValueError: the name would leave the folder, or be hidden in it.
            RuntimeError: the place cannot be written.
        """
        if not name.strip() or name[0] == "." or set(name) & set("/\\:\0"):
            raise ValueError(
                f"run_name must be a plain file name, not hidden and without / \\ :, got {name!r}"
            )
        try:
            root.mkdir(parents=True, exist_ok=True)
            for number in range(1, 1_000_000):
                path = root / f"{name}-{number:04d}"
                with suppress(FileExistsError):
                    path.mkdir()
                    content = {"version": VERSION, **config}
                    write_json(path / _CONFIG, content | {"digest": _digest_of_config(content)})
                    return cls(path)
        except OSError as err:
            raise RuntimeError(
                f"the runs folder {root} must be writable, got {err.strerror}; choose another folder"
            ) from err
        raise RuntimeError(
            f"{root} must hold fewer than a million runs of the name {name}; choose another name"
        )

    @classmethod
    def find(cls, root: Path, name: str, config: Mapping[str, Any]) -> RunFolder | None:
        """The first folder that `create` made of the same name and settings; None if there is none."""
        wanted = json.loads(json.dumps({"version": VERSION, **config}))
        for path in sorted(root.glob(f"{escape(name)}-*")):
            with suppress(RuntimeError):
                if cls(path).config() == wanted:
                    return cls(path)
        return None

    def config(self) -> dict[str, Any]:
        """The settings that `create` wrote.

        Raises:
            RuntimeError: the folder is not a run, or of a newer version.
        """
        try:
            config: dict[str, Any] = read_json(self.path / _CONFIG, self.path)
            version, seal = config["version"], config.pop("digest", None)
        except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as err:
            raise RuntimeError(
                f"{self.path} must be a run folder with a config.json; choose another folder"
            ) from err
        if seal is not None and seal != _digest_of_config(config):
            raise RuntimeError(
                f"{self.path / _CONFIG} must be as it was saved, but is not that of its digest; restore it, or start a "
                "new run"
            )
        if version != VERSION:
            raise RuntimeError(f"{self.path} must be a run of version {VERSION}, got {version}")
        return config

    @property
    def exists(self) -> bool:
        """Whether this is the folder of a run, readable or not."""
        return (self.path / _CONFIG).is_file()

    def state_path(self, step: int) -> Path:
        """Where the state after `step` optimiser steps lies."""
        return self.path / f"state-{step:08d}.safetensors"

    def values_path(self, step: int) -> Path:
        """Where the plain values of that state are repeated."""
        return self.state_path(step).with_suffix(".json")

    def film_folder(self, step: int) -> Path:
        """Where the film of that step lies, which is for `pictures.film` to write and read."""
        return self.path / _FILMS / f"step-{step:08d}"

    def film_steps(self) -> list[int]:
        """The steps of whole films, ascending."""
        found = [(_FILM.fullmatch(path.name), path) for path in (self.path / _FILMS).glob("step-*")]
        return sorted(int(match[1]) for match, path in found if match and self._own(path) and is_whole(path))

    def samples_folder(self, step: int) -> Path:
        """Where pictures of the user's prompts at that step lie, which is for `pictures.strip` to write and read."""
        return self.path / _SAMPLES / f"step-{step:08d}"

    def sample_steps(self) -> list[int]:
        """The steps that the user's prompts were drawn at, ascending."""
        found = [(_FILM.fullmatch(path.name), path) for path in (self.path / _SAMPLES).glob("step-*")]
        return sorted(int(match[1]) for match, path in found if match and self._own(path) and are_whole(path))

    def _own(self, path: Path) -> bool:
        """Whether `path` lies in this folder, by no link that leads out of it."""
        return path.resolve().is_relative_to(self.path.resolve())

    def keep_workflow(self, graph: Mapping[str, Any]) -> None:
        """Keep the graph that trained the run last: ``prompt`` and ``workflow``, whole or not at all.

        Raises:
            RuntimeError: the place cannot be written.
        """
        write_json(self.path / _WORKFLOW, graph)

    def workflow(self) -> dict[str, Any]:
        """What `keep_workflow` kept; {} where nothing was, or it cannot be read."""
        try:
            kept = read_json(self.path / _WORKFLOW, self.path)
        except (OSError, ValueError):
            return {}
        return kept if isinstance(kept, dict) else {}

    @property
    def events_folder(self) -> Path:
        """Where TensorBoard's event files lie, if the run has any."""
        return self.path / _EVENTS

    @property
    def panel_path(self) -> Path:
        """Where the facts lie that the run's panel showed last."""
        return self.path / _PANEL

    def keep_panel(self, facts: Mapping[str, Any]) -> None:
        """Keep what the run's panel shows, whole or not at all.

        What the nodes of earlier stages in the same workflow showed last stays, below ``stages``.

        Raises:
            RuntimeError: the place cannot be written.
        """
        stages: dict[str, Any] = {}
        with suppress(OSError, ValueError, AttributeError, KeyError, TypeError):
            before = self.panel()
            if before.get("workflow") == facts.get("workflow"):
                stages = before.pop("stages", {})
                stages[before["node"]] = before
        stages = {node: own for node, own in stages.items() if node != facts.get("node")}
        write_atomically(
            self.panel_path, json.dumps({**facts, **({"stages": stages} if stages else {})}).encode()
        )

    def panel(self) -> dict[str, Any]:
        """What the run's panel showed last.

        Raises:
            OSError, ValueError: nothing was kept, or it is not readable.
        """
        facts = read_json(self.panel_path, self.path)
        if not isinstance(facts, dict):
            raise ValueError(f"{self.panel_path} must hold a JSON object")
        return facts

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, nobody takes the run away, and no other process trains it.

        What processes that were killed left half-written in it is gone then.

        Raises:
            RuntimeError: another process trains it.
        """
        path = self.path.resolve()
        with _guard:
            locks = _held.setdefault(path, [])
            try:
                locks.append(locks[0] if locks else RunLock.take(path / _LOCK, self.path.name))
            finally:
                if not locks:
                    del _held[path]
            if len(locks) == 1:
                for folder in (path, *(path / _FILMS).glob("step-*")):
                    sweep_partials(folder, old=True)
        try:
            yield
        finally:
            with _guard:
                lock = locks.pop()
                if not locks:
                    del _held[path]
                    lock.release()

    @property
    def is_held(self) -> bool:
        """Whether somebody, in whatever process, is inside `held`: the run is being trained."""
        return self.path.resolve() in _held or RunLock.is_taken(self.path / _LOCK)

    def remove(self) -> None:
        """Delete the run: at once for whoever looks for it, then file by file; links are removed, not followed.

        What a process that was killed meanwhile leaves is no run any more; `sweep` takes it away.

        Raises:
            RuntimeError: the run is held, or the folder cannot be moved.
        """
        gone = self.path.with_name(DELETED + secrets.token_hex(8))
        with _guard:
            if self.is_held:
                raise RuntimeError(f"{self.path.name} is being trained; stop it before deleting it")
            try:
                self.path.rename(gone)
            except OSError as err:
                raise RuntimeError(
                    f"{self.path.name} must be movable to be deleted, got {err.strerror}; "
                    "close what has its files open"
                ) from err
        shutil.rmtree(gone, ignore_errors=True)

    def steps(self) -> list[int]:
        """The steps whose states are here, ascending."""
        found = [_STATE.fullmatch(p.name) for p in self.path.glob("state-*.safetensors")]
        return sorted(int(match[1]) for match in found if match)

    def save(self, state: RunState, pinned: bool = False, keep: int = 0) -> Path:
        """Write a state, then remove old ones.

        Args:
            pinned: a handle in a graph may name this state; it is never removed by `keep`.
            keep: how many states that are not pinned stay, newest first; 0 keeps all. The best moment that a state
                which stays names stays with it.
        """
        pinned = pinned or (state.step in self.steps() and self._is_pinned(state.step))
        values = {**state.values, "version": VERSION, "step": state.step, "pinned": pinned}
        tensors = {k: v.detach().cpu().contiguous() for k, v in state.tensors.items()}
        path = self.state_path(state.step)
        content = tensor_file(tensors, _described(values, tensors))
        try:
            write_atomically(path, content)
        except RuntimeError as err:
            if not pinned or not is_full(err):
                raise
            self._write_making_room(path, content, err)
        try:
            write_json(self.values_path(state.step), values)
        except (RuntimeError, ValueError) as err:  # it is for people; the state itself is saved
            logger.warning("%s", err)
        if keep:
            self._prune(keep)
        return path

    def pin(self, step: int) -> None:
        """Let a state that is here never be removed by `keep`.

        Raises:
            RuntimeError: it is not there, or the place cannot be written.
        """
        if step not in self.steps() or not self._is_pinned(step):
            self.save(self.load(step), pinned=True)

    def _write_making_room(self, path: Path, content: Sequence[memoryview], err: RuntimeError) -> None:
        """Write a state that must not be lost to a disk that is full: films and states on the way give their room.

        The newest of those states stays, in case that this one cannot be written at all.
        """
        gone = []
        for name, spare in self._spare():
            shutil.rmtree(spare, ignore_errors=True) if spare.is_dir() else spare.unlink(missing_ok=True)
            gone.append(name)
            try:
                write_atomically(path, content)
            except RuntimeError as again:
                if not is_full(again):
                    raise
                err = again
            else:
                logger.warning("the disk is full: deleted %s to save %s", ", ".join(gone), path.name)
                return
        raise err

    def _spare(self) -> Iterator[tuple[str, Path]]:
        """What may be deleted for a state that must be saved, the least missed first: name, file or folder."""
        for step in self.film_steps():
            yield f"the film of step {step}", self.film_folder(step)
        free = [step for step in self.steps() if not self._is_pinned(step)]
        named = {self._best_of(step) for step in self.steps()}
        for step in [step for step in free[:-1] if step not in named]:
            yield f"the state of step {step}", self.state_path(step)

    @torch.inference_mode(False)  # tensors that can be trained on, whatever mode the host is in
    def load(self, step: int, group: str = "") -> RunState:
        """Read the state after `step` optimiser steps.

        Args:
            group: read the tensors below ``group.`` alone; empty reads all. Plain values are always there.

        Raises:
            RuntimeError: it is not there or not readable.
        """
        path = self.state_path(step)
        try:
            with safe_open(path, framework="pt") as file:
                values, digests = _checked(file.metadata())
                there = set(file.keys())
                if digests is not None and there != digests.keys():
                    raise ValueError("its tensors are not those it was saved with; it is damaged")
                names = sorted(name for name in there if not group or name.startswith(f"{group}."))
                tensors = {name: file.get_tensor(name) for name in names}
            for name, tensor in tensors.items():
                if digests is not None and digests[name] != digest([(name, tensor)], sample=None):
                    raise ValueError(f"{name} is not as it was saved; it is damaged")
            step = int(values["step"])
        except FileNotFoundError as err:
            have = ", ".join(map(str, self.steps())) or "none"
            raise RuntimeError(
                f"step {step} must have a saved state in {self.path}; saved steps: {have}"
            ) from err
        except _UNREADABLE as err:
            why = f"no {err}" if isinstance(err, KeyError) else f"{one_line(err):.150}"
            raise RuntimeError(
                f"{path} must be a readable state, got {why}; resume from another step"
            ) from err
        return RunState(step, tensors, values)

    def _prune(self, keep: int) -> None:
        """Remove states but the newest `keep`, those that are pinned, and the best moments that these name."""
        free = [step for step in self.steps() if not self._is_pinned(step)]
        staying = {*self.steps()} - {*free[:-keep]}
        named = {self._best_of(step) for step in staying}
        for step in free[:-keep]:
            if step in named:
                continue
            self.state_path(step).unlink(missing_ok=True)
            self.values_path(step).unlink(missing_ok=True)

    def _best_of(self, step: int) -> int | None:
        """The step of the best moment so far that a state names; None if it names none or cannot be read."""
        try:
            with safe_open(self.state_path(step), framework="pt") as file:
                return int(json.loads(file.metadata()["state"])["best"]["step"])
        except _UNREADABLE:
            return None

    def _is_pinned(self, step: int) -> bool:
        """Whether a state must stay; one that cannot be read may be pinned, so it stays."""
        try:
            with safe_open(self.state_path(step), framework="pt") as file:
                return bool(json.loads(file.metadata()["state"])["pinned"])
        except _UNREADABLE:
            return True


def _digest_of_config(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def _described(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The header of a state: its plain values, a digest of each tensor, and one of all that."""
    digests = {name: digest([(name, tensor)], sample=None) for name, tensor in tensors.items()}
    header = {"state": json.dumps(values), "digests": json.dumps(digests)}
    return header | {"digest": _digest_of(header)}


def _digest_of(header: Mapping[str, str]) -> str:
    return hashlib.sha256(f"{header['state']}\0{header['digests']}".encode()).hexdigest()[:16]


def _checked(header: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str] | None]:
    """The plain values of a state's header, and its tensors' digests; None: it was saved before there were any.

    Raises:
        ValueError: it is damaged.
    """
    if "digest" not in header and "digests" not in header:
        return json.loads(header["state"]), None
    if header.get("digest") != _digest_of(header):
        raise ValueError("a header that is not as it was saved; it is damaged")
    return json.loads(header["state"]), json.loads(header["digests"])


def sweep(root: Path) -> None:
    """Take away what deletions and saves that were interrupted left in the runs folder."""
    for path in root.glob(f"{DELETED}*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in (p.parent for p in root.glob(f"*/{_CONFIG}")):
        for folder in (path, *(path / _FILMS).glob("step-*")):
            sweep_partials(folder)
