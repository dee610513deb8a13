"""States that are written while the training goes on: what is in them, who waits for whom, and what is told."""

import errno
import logging
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from everything import EVERYTHING, same
from safetensors.torch import save

from rollout_trainer.training.files import tensor_file
from rollout_trainer.training.pictures.film import Camera
from rollout_trainer.training.runs import saving
from rollout_trainer.training.runs.folder import RunFolder
from rollout_trainer.training.runs.run import start, train
from rollout_trainer.training.trainer import snapshot
from rollout_trainer.training.trainer.snapshot import Snapshot
from rollout_trainer.training.trainer.state import RunState

# --- the file ---------------------------------------------------------------------------------------


def tensors_of_all_types() -> dict[str, torch.Tensor]:
    types = "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 int64 int32 int16 int8 uint8 bool"
    types += " uint16 uint32 uint64 complex64"
    generator = torch.Generator().manual_seed(0)
    out = {}
    for name in types.split():
        for shape in ((), (0,), (3,), (2, 3)):
            size = torch.empty(shape, dtype=getattr(torch, name)).nbytes
            raw = torch.randint(2, (size,), dtype=torch.uint8, generator=generator)
            out[f"{len(shape)} “{name}” {shape}"] = raw.view(getattr(torch, name)).reshape(shape)
    return dict(sorted(out.items(), reverse=True))


@pytest.mark.parametrize("metadata", [{}, {"state": 'a "quoted" ä \n\x01\x7f/ value'}])
def test_the_file_is_that_of_the_safetensors_package(metadata):
    tensors = tensors_of_all_types()
    for some in (tensors, {}, {"one": torch.arange(3.0)}):
        assert b"".join(tensor_file(some, metadata)) == save(some, metadata or None)


def test_the_file_is_written_out_of_the_tensors_own_memory():
    tensors = {"a": torch.zeros(1000), "b": torch.zeros(10, dtype=torch.bfloat16)}
    _, *parts = tensor_file(tensors, {})
    assert [np.frombuffer(part, np.uint8).ctypes.data for part in parts] == [
        tensors[name].data_ptr() for name in ("a", "b")
    ]


# --- what is in a state -----------------------------------------------------------------------------


@pytest.fixture
def late(monkeypatch):
    """Copying begins when the trainer waits for it, or after two seconds: too late for one that does not."""
    holding = threading.Event()
    take, hold, film = Snapshot.take, Snapshot.hold, Camera.take

    def waiting(own):
        holding.wait(2)
        holding.clear()
        time.sleep(0.05)
        return take(own)

    def told(own):
        holding.set()
        hold(own)

    def filmed(own, step):
        holding.set()
        time.sleep(0.2)  # time enough to copy what a film put in the weights' place
        return film(own, step)

    monkeypatch.setattr(Snapshot, "take", waiting)
    monkeypatch.setattr(Snapshot, "hold", told)
    monkeypatch.setattr(Camera, "take", filmed)


@pytest.mark.parametrize(
    "settings",
    [{}, EVERYTHING, {"ema_decay": 0.9, "preview_every": 2}],
    ids=["plain", "everything", "a film with the average's weights"],
)
def test_a_state_is_that_of_its_step_however_late_it_is_copied(
    settings, make_source, make_data, make_config, tmp_path, late
):
    data = make_data()
    settings = {"steps": 6, **settings}
    at_the_end = {}
    for step in (2, 4):
        config = make_config(**settings)
        run = train(start(tmp_path / f"{step}", "t", make_source("flow"), data, config), step)
        at_the_end[step] = run.folder.load(step)
    config = make_config(**settings | {"save_every": 2})
    run = train(start(tmp_path / "midway", "t", make_source("flow"), data, config), 6)
    for step, whole in at_the_end.items():
        assert same(run.folder.load(step), whole)


def test_a_snapshot_is_of_its_own_memory_and_lets_the_state_go():
    whole = {"plain": torch.arange(6.0).view(2, 3), "half": torch.ones(4, dtype=torch.bfloat16)}
    whole |= {"turned": whole["plain"].T, "number": torch.tensor(3), "none": torch.zeros(0, 2)}
    whole["trained"] = torch.ones(2, requires_grad=True)
    taken = Snapshot(RunState(7, whole, {"a": 1}), torch.device("cpu")).take()
    assert (taken.step, taken.values, taken.tensors.keys()) == (7, {"a": 1}, whole.keys())
    for name, tensor in taken.tensors.items():
        assert torch.equal(tensor, whole[name])
        assert tensor.dtype == whole[name].dtype
        assert tensor.is_contiguous()
        assert not tensor.requires_grad
        assert not len(tensor) if name == "none" else tensor.data_ptr() != whole[name].data_ptr()


# --- who waits --------------------------------------------------------------------------------------


def test_the_loop_goes_on_while_a_state_is_written(
    make_source, make_data, make_config, tmp_path, monkeypatch
):
    """The writing of step 1 ends after step 4, which another thread waits for."""
    write, steps_done, told = RunFolder.save, threading.Event(), []

    def slow(folder, state, *args, **kwargs):
        if state.step == 1:
            assert steps_done.wait(20), "the loop stood still"
        return write(folder, state, *args, **kwargs)

    def watch(report):
        told.append(report.saved)
        if report.step == 4:
            steps_done.set()
            for thread in threading.enumerate():
                if thread.name == "saving":
                    thread.join(20)

    monkeypatch.setattr(RunFolder, "save", slow)
    run = start(tmp_path, "t", make_source("flow"), make_data(), make_config(save_minutes=0.0))
    asks = iter([{"save"}, (), (), (), (), ()])
    run = train(run, 6, watch, lambda: next(asks))
    assert told == [0, 0, 0, 0, 1, 0]
    assert run.folder.steps() == [0, 1, 6]


class Stop(BaseException):
    """As a cancel of the host's."""


@pytest.mark.parametrize("ending", ["end", "stop", "finish"])
def test_every_end_waits_for_what_is_being_written(
    ending, make_source, make_data, make_config, tmp_path, monkeypatch
):
    write, order = RunFolder.save, []

    def slow(folder, state, *args, **kwargs):
        if threading.current_thread().name == "saving":
            time.sleep(0.3)
        path = write(folder, state, *args, **kwargs)
        order.append(state.step)
        return path

    def watch(report):
        if ending == "stop" and report.step == 3:
            raise Stop

    monkeypatch.setattr(RunFolder, "save", slow)
    run = start(tmp_path, "t", make_source("flow"), make_data(), make_config(save_every=2))
    order.clear()
    asks = iter([(), (), {"finish"} if ending == "finish" else ()])
    with pytest.raises(Stop) if ending == "stop" else nullcontext():
        train(run, 3, watch, lambda: next(asks))
    assert order == [2, 3]
    assert not [thread for thread in threading.enumerate() if thread.name == "saving"]
    assert run.folder.steps() == [0, 2, 3]


def test_one_state_is_written_at_a_time(make_source, make_data, make_config, tmp_path, monkeypatch):
    write, inside = RunFolder.save, []

    def alone(folder, state, *args, **kwargs):
        inside.append(state.step)
        assert len(inside) == 1
        time.sleep(0.02)
        path = write(folder, state, *args, **kwargs)
        inside.clear()
        return path

    monkeypatch.setattr(RunFolder, "save", alone)
    config = make_config(save_every=1, keep=2)
    run = train(start(tmp_path, "t", make_source("flow"), make_data(), config), 6)
    assert run.folder.steps() == [0, 4, 5, 6]


# --- what is told -----------------------------------------------------------------------------------


def test_a_copy_that_finds_no_memory_is_a_warning(
    make_source, make_data, make_config, tmp_path, monkeypatch, caplog
):
    def full(_):
        raise MemoryError

    run = start(tmp_path, "t", make_source("flow"), make_data(), make_config(save_every=2))
    monkeypatch.setattr(snapshot, "_copy", full)
    with caplog.at_level(logging.WARNING):
        run = train(run, 5)
    assert run.folder.steps() == [0, 5]
    assert "step 2 not saved, training goes on: MemoryError" in caplog.text


def test_a_full_disk_is_told_with_what_it_lacks(
    make_source, make_data, make_config, tmp_path, monkeypatch, caplog
):
    def full(_: int) -> None:
        if threading.current_thread().name == "saving":
            raise OSError(errno.ENOSPC, "No space left on device")

    run = start(tmp_path, "t", make_source("flow"), make_data(), make_config(save_every=4))
    monkeypatch.setattr("os.fsync", full)
    with caplog.at_level(logging.WARNING, saving.__name__):
        train(run, 5)
    assert "step 4 not saved, training goes on" in caplog.text
    assert "MB needed" in caplog.text
    assert run.folder.steps() == [0, 5]
    assert not list(Path(run.folder.path).glob("*.partial"))


# --- on CUDA, imitated ------------------------------------------------------------------------------


def test_on_cuda_the_device_waits_for_the_copies_before_the_weights_change(
    make_source, make_data, make_config, tmp_path, monkeypatch
):
    """The order in which streams are told to wait is all there is to it; no GPU is needed to look at that."""
    said = []

    class Event:
        def record(self, stream="computing"):
            said.append(f"{stream} marks")

        def synchronize(self):
            said.append("the saving thread waits")

    class Stream:
        def __init__(self, name="copying"):
            self.name = name

        def __repr__(self):
            return self.name

        def wait_event(self, _):
            said.append(f"{self.name} waits")

    def pinned(tensor):
        said.append("copy")
        return tensor.detach().clone()

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("computing"))
    monkeypatch.setattr(snapshot, "_pinned", pinned)
    whole = RunState(1, {"a": torch.ones(2), "b": torch.zeros(1)}, {})
    taken = Snapshot(whole, torch.device("cuda"))
    assert same(taken.take(), whole)
    taken.hold()
    *before, last, then = said
    assert [*before, last] == [
        "computing marks",
        "copying waits",
        "copy",
        "copy",
        "copying marks",
        "the saving thread waits",
    ]
    assert then == "computing waits"
