"""A state on the disk is whole or absent, whatever happens to the process, the file or the disk."""

from __future__ import annotations

import ast
import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rollout_trainer.training.files import write_atomically
from rollout_trainer.training.objective.config import RolloutConfig
from rollout_trainer.training.runs import folder as folder_module
from rollout_trainer.training.runs.folder import RunFolder
from rollout_trainer.training.runs.run import reopen, start, train
from rollout_trainer.training.trainer.state import History, RunState


def a_state(step: int, value: float = 0.0) -> RunState:
    tensors = {
        "adapter.a.weight": torch.full((3, 2), value),
        "adapter.half": torch.full((4,), value, dtype=torch.bfloat16),
        "rng.order": torch.arange(5, dtype=torch.uint8),
        "history.total": torch.tensor([0.5, float("nan")], dtype=torch.float64),
        "adapterless.x": torch.zeros(()),
    }
    return RunState(step, tensors, {"optimizer": {"lr": 1e-4, "betas": [0.9, 0.99]}, "loss": value})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs", "emoji", {"config": {"steps": 5}})


def names(folder: RunFolder) -> set[str]:
    return {p.name for p in folder.path.iterdir()}


# --- what is written is what is read ------------------------------------------------------------


def test_a_state_is_read_back_as_it_was(folder):
    written = a_state(7, 1.5)
    path = folder.save(written)
    read = folder.load(7)
    assert path == folder.state_path(7)
    assert read.step == 7
    assert read.tensors.keys() == written.tensors.keys()
    for name, tensor in written.tensors.items():
        assert read.tensors[name].dtype == tensor.dtype
        assert torch.equal(read.tensors[name].nan_to_num(-1), tensor.nan_to_num(-1))
    assert {name: read.values[name] for name in written.values} == written.values
    assert read.group("adapter").keys() == {"a.weight", "half"}
    assert json.loads(path.with_suffix(".json").read_text()) == read.values


def test_views_and_gradients_are_saved_as_plain_tensors(folder):
    x = torch.arange(12.0, requires_grad=True)
    folder.save(RunState(1, {"adapter.t": x.view(3, 4).T, "adapter.again": x}, {}))
    read = folder.load(1)
    assert torch.equal(read.tensors["adapter.t"], x.detach().view(3, 4).T)
    assert not read.tensors["adapter.again"].requires_grad


def test_each_run_has_a_folder_of_its_own(tmp_path):
    runs = [RunFolder.create(tmp_path, "emoji", {"n": n}) for n in range(3)]
    assert [r.path.name for r in runs] == ["emoji-0001", "emoji-0002", "emoji-0003"]
    assert [r.config()["n"] for r in runs] == [0, 1, 2]


def test_history_columns_may_begin_late():
    history = History()
    history.append({"total": 1.0})
    history.append({"total": 2.0, "adr": 3.0})
    history.note("validation", 4.0)
    again = History.from_tensors(history.tensors())
    nan = pytest.approx(float("nan"), nan_ok=True)
    columns = {name: list(column) for name, column in again.columns.items()}
    assert columns == {"total": [1.0, 2.0], "adr": [nan, 3.0], "validation": [nan, 4.0]}
    assert (again.last("adr"), len(again)) == (3.0, 2)


# --- keep-N -------------------------------------------------------------------------------------


def test_the_newest_states_and_the_pinned_ones_are_kept(folder):
    folder.save(a_state(0), pinned=True)
    for step in range(1, 8):
        folder.save(a_state(step), pinned=step == 3, keep=2)
    assert folder.steps() == [0, 3, 6, 7]
    assert {p.stem for p in folder.path.glob("state-*.json")} == {
        p.stem for p in folder.path.glob("state-*.safetensors")
    }
    folder.save(a_state(8), keep=0)
    assert folder.steps() == [0, 3, 6, 7, 8]


def test_a_pinned_state_stays_pinned_when_it_is_written_again(folder):
    """A handle names step 2; training to it once more, as a periodic save, must not set it free."""
    folder.save(a_state(2), pinned=True)
    folder.save(a_state(2), keep=1)
    for step in (3, 4, 5):
        folder.save(a_state(step), keep=1)
    assert folder.steps() == [2, 5]


def test_the_loop_keeps_what_handles_name(toy_source, make_data, make_config, tmp_path):
    config = make_config(save_every=1, keep=2)
    run = start(tmp_path, "t", toy_source, make_data(), config)
    run = train(run, 5)
    run = train(run, 5)
    assert run.folder.steps() == [0, 5, 8, 9, 10]  # two stages' ends, and the last two in between


# --- files that are not states ------------------------------------------------------------------


def test_leftovers_and_strangers_are_no_states(folder):
    folder.save(a_state(1))
    whole = folder.state_path(1).read_bytes()
    for name in (
        "state-00000002.safetensors.partial",
        "state-00000003.json",
        "state-best.safetensors",
        "state-00000004 (copy).safetensors",
        "adapter.safetensors",
    ):
        (folder.path / name).write_bytes(whole[: len(whole) // 2])
    assert folder.steps() == [1]
    folder.save(a_state(2, 2.0), keep=1)  # over its own leftover
    assert folder.steps() == [2]
    assert folder.load(2).values["loss"] == 2.0
    with folder.held():
        assert "state-00000002.safetensors.partial" not in names(folder)
    assert "state-best.safetensors" in names(folder)


def spoil_nothing_left(path: Path) -> None:
    path.write_bytes(b"")


def spoil_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil_header(path: Path) -> None:
    path.write_bytes(b"\xff" * 16 + path.read_bytes()[16:])


def spoil_other_content(path: Path) -> None:
    save_file({"adapter": torch.zeros(2)}, path)


def spoil_other_metadata(path: Path) -> None:
    save_file({"adapter": torch.zeros(2)}, path, {"state": "{half"})


SPOILS = [spoil_nothing_left, spoil_half, spoil_header, spoil_other_content, spoil_other_metadata]


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_corrupt_state_is_named_and_the_others_are_usable(folder, spoil):
    for step in (1, 2):
        folder.save(a_state(step, step))
    spoil(folder.state_path(2))
    with pytest.raises(RuntimeError, match=r"state-00000002.* must be a readable state, .*another step"):
        folder.load(2)
    assert folder.load(1).values["loss"] == 1


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_corrupt_state_does_not_stop_later_saves(folder, spoil):
    """It is not known to be free to go: it stays, and counts for nothing, until it is written again."""
    for step in (1, 2, 3):
        folder.save(a_state(step))
    spoil(folder.state_path(2))
    for step in (4, 5):
        folder.save(a_state(step), keep=2)
    assert folder.steps() == [2, 4, 5]
    folder.save(a_state(2, 9.0), keep=2)
    assert folder.load(2).values["loss"] == 9.0


def test_a_step_without_a_state_lists_those_that_are_there(folder):
    with pytest.raises(RuntimeError, match=r"step 3 must have a saved state in .*; saved steps: none"):
        folder.load(3)
    for step in (5, 10):
        folder.save(a_state(step))
    with pytest.raises(RuntimeError, match="saved steps: 5, 10"):
        folder.load(3)


@pytest.mark.parametrize(
    "content", [None, "{half", "[]", '{"version": 99}'], ids=["none", "half", "list", "new"]
)
def test_a_folder_that_is_no_run_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(RuntimeError, match=r"must be a run"):
        RunFolder(tmp_path).config()


# --- disks that refuse --------------------------------------------------------------------------


def test_a_full_disk_leaves_the_last_state_and_no_rest(folder, monkeypatch):
    folder.save(a_state(1, 1.0))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for step in (1, 2):
        with pytest.raises(RuntimeError, match=r"must be writable, got No space left.*; free space"):
            folder.save(a_state(step, 2.0))
    monkeypatch.undo()
    assert folder.load(1).values["loss"] == 1.0
    assert names(folder) == {"config.json", "state-00000001.safetensors", "state-00000001.json"}


def test_a_folder_that_is_gone_is_told(folder):
    with pytest.raises(RuntimeError, match=r"state-00000001.safetensors must be writable, got No such file"):
        RunFolder(folder.path / "gone").save(a_state(1))


@pytest.mark.parametrize("kind", ["file", "below a file", "dangling link"])
def test_a_runs_folder_that_cannot_be_made_is_told(tmp_path, kind):
    """Root may write anywhere, so the refusals are those that nobody is exempt from."""
    place = tmp_path / "runs"
    if kind == "dangling link":
        place.symlink_to(tmp_path / "nowhere" / "else")
    else:
        place.write_text("not a folder")
    root = place / "deep" if kind == "below a file" else place
    with pytest.raises(RuntimeError, match=r"the runs folder .*runs.* must be writable, got "):
        RunFolder.create(root, "emoji", {})


def test_what_was_there_stays_until_the_new_content_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def check(_: int) -> None:
        assert path.read_bytes() == b"old"
        (partial,) = tmp_path.glob(f"file.{os.getpid()}-*.partial")
        assert partial.read_bytes() == b"new"

    monkeypatch.setattr(os, "fsync", check)
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# --- processes that are killed ------------------------------------------------------------------

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


class Trainers:
    """Starts training processes that can be killed, see killed_training.py."""

    def __init__(self) -> None:
        script = Path(__file__).parents[1] / "killed_training.py"
        self.server = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self.answer() == "ready"

    def answer(self) -> str:
        return self.server.stdout.readline().strip()

    def tell(self, line: str) -> None:
        self.server.stdin.write(line + "\n")
        self.server.stdin.flush()

    def start(self, *words: object) -> int:
        self.tell("\t".join(map(str, words)))
        return int(self.answer())

    def died_of(self) -> int:
        self.tell("reap")
        return int(self.answer())


@pytest.fixture(scope="module")
def trainers() -> Iterator[Trainers]:
    own = Trainers()
    yield own
    own.server.kill()  # that is quicker than its own end, and it has nothing to tidy up
    own.server.communicate()


@pytest.fixture
def killable(toy_source, make_data, make_config, tmp_path):
    """A run that saves every step, with everything on that has a state of its own."""
    config = make_config(
        save_every=1,
        keep=3,
        ema_decay=0.9,
        caption_dropout=0.2,
        rollout=RolloutConfig(max_step_offset=3, probability=0.5, steps_per_trajectory=20, reuse=2),
    )
    return start(tmp_path, "t", toy_source, make_data(), config)


def whole_states(folder: RunFolder) -> list[int]:
    """The steps of the states, all of which can be read."""
    assert all(folder.load(step).step == step for step in folder.steps())
    return folder.steps()


def uninterrupted(run, step: int):
    """The state at `step` of the same run without a break."""
    whole = start(run.folder.path.parent, "whole", run.source, run.data, run.config)
    return train(whole, step).state


def assert_equal_states(ours: RunState, expected: RunState) -> None:
    assert ours.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert torch.equal(ours.tensors[name].nan_to_num(-7), tensor.nan_to_num(-7)), name


@needs_fork
def test_a_run_killed_twenty_times_at_random_is_the_uninterrupted_run(trainers, killable):
    moments, last, seconds = random.Random(8), 0, 0.0
    for _ in range(20):
        begin = time.perf_counter()
        pid = trainers.start(killable.folder.path)
        time.sleep(moments.uniform(0, 2 * seconds))
        while last == 0 and killable.folder.steps() == [0]:  # once: how long does it take to get going?
            time.sleep(0.001)
            seconds = time.perf_counter() - begin
        os.kill(pid, signal.SIGKILL)
        assert trainers.died_of() == signal.SIGKILL
        steps = whole_states(killable.folder)
        assert steps[0] == 0
        assert steps[-1] >= last
        assert len(steps) <= 1 + 3 + 1  # killed between a save and the removal of the oldest
        last = steps[-1]
    again = reopen(killable.folder.path, killable.source, killable.data)
    assert again.step == last
    assert_equal_states(again.state, uninterrupted(killable, last))


@needs_fork
@pytest.mark.parametrize(
    ("point", "n", "left"),
    [
        ("half", 1, 0),  # the first state is half written
        ("fsync", 1, 0),  # written, not flushed
        ("replace", 1, 0),  # flushed, not renamed
        ("half", 2, 1),  # the state is there, its readable copy half written
        ("replace", 8, 4),
        ("half", 9, 4),
        ("unlink", 1, 4),  # before the oldest is removed
        ("unlink", 2, 4),  # between its two files
    ],
)
def test_killed_at_the_worst_moments_of_a_save(trainers, killable, point, n, left):
    trainers.start(killable.folder.path, point, n)
    assert trainers.died_of() == signal.SIGKILL
    assert whole_states(killable.folder)[-1] == left
    if point in ("half", "fsync", "replace"):
        assert any(name.endswith(".partial") for name in names(killable.folder))
    again = train(reopen(killable.folder.path, killable.source, killable.data), 3)
    assert again.step == left + 3
    assert_equal_states(again.state, uninterrupted(killable, left + 3))


@pytest.mark.parametrize("name", ["", " ", ".hidden", "..", "../out", "a/b", "a\\b", "C:run", "a\0b"])
def test_a_run_stays_in_its_folder_whatever_its_name(name, tmp_path):
    root = tmp_path / "runs"
    with pytest.raises(ValueError, match="run_name must be a plain file name"):
        RunFolder.create(root, name, {})
    assert not root.exists()


def texts_in_code(path: Path) -> list[str]:
    """The texts that a module uses; its documentation is none."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = (
        node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    return [node.value for node in texts if id(node) not in prose]


def test_the_names_of_a_runs_files_are_known_to_one_module() -> None:
    pack = Path(folder_module.__file__).parents[2]
    name = re.compile(r"config\.json|film|panel\.json|\.deleted-|(state|step)-\S*")
    knowing = {
        path.relative_to(pack).as_posix()
        for room in ("nodes", "host", "training")
        for path in (pack / room).rglob("*.py")
        if any(name.fullmatch(text) for text in texts_in_code(path))
    }
    assert knowing - {"training/runs/live.py"} == {"training/runs/folder.py"}  # live has a fact called "film"
