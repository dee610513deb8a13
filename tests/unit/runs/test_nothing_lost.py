"""States, exports and folders under damage, full disks and other processes; and trainings that do not learn."""

import errno
import json
import logging
import os
import random
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from everything import EVERYTHING, same

from rollout_trainer.training import files
from rollout_trainer.training.files import partial_path, read_file, sealed, sweep_partials, write_tensors
from rollout_trainer.training.lora.adapter import LoRAConfig, attached
from rollout_trainer.training.runs.export import save_lora
from rollout_trainer.training.runs.folder import RunFolder, sweep
from rollout_trainer.training.runs.live import Live
from rollout_trainer.training.runs.run import reopen, start, train
from rollout_trainer.training.runs.stages import branch
from rollout_trainer.training.trainer.config import TrainConfig
from rollout_trainer.training.trainer.optim import OptimizerConfig

# --- damage -----------------------------------------------------------------------------------------


def damaged(content: bytes, random_: random.Random) -> bytes:
    """One bit flipped, a piece cut off, or a stretch of noise."""
    kind = random_.choice(["bit", "bit", "bit", "cut", "noise"])
    at = random_.randrange(len(content))
    if kind == "cut":
        return content[:at]
    if kind == "noise":
        return content[:at] + random_.randbytes(8) + content[at + 8 :]
    return content[:at] + bytes([content[at] ^ 1 << random_.randrange(8)]) + content[at + 1 :]


def test_a_damaged_state_is_never_trained_on(toy_source, make_data, make_config, tmp_path):
    """Before, a flipped bit among the tensors went unnoticed."""
    data = make_data()
    run = train(start(tmp_path, "t", toy_source, data, make_config(**EVERYTHING)), 3)
    path, random_ = run.folder.state_path(3), random.Random(1)
    whole = path.read_bytes()
    for _ in range(150):
        path.write_bytes(damaged(whole, random_))
        if path.read_bytes() == whole:
            continue
        with pytest.raises(
            RuntimeError, match=r"state-00000003\.safetensors must be a (readable|whole) state"
        ) as told:
            train(run, 1)
        assert len(str(told.value).splitlines()) == 1
    path.write_bytes(whole)
    train(run, 1)


def test_damaged_settings_of_a_run_are_refused(toy_source, make_data, make_config, tmp_path):
    data = make_data()
    run = start(tmp_path, "t", toy_source, data, make_config())
    path, random_, told = run.folder.path / "config.json", random.Random(2), []
    whole = path.read_bytes()
    for _ in range(100):
        path.write_bytes(damaged(whole, random_))
        try:
            again = reopen(run.folder.path, toy_source, data)
        except (RuntimeError, ValueError) as err:
            told.append(str(err))
        else:  # the damage lies in white space, or took the digest's own name away
            assert again.config == run.config
    assert len(told) > 80
    assert not any("\n" in text for text in told)


def test_a_damaged_lora_file_is_refused(tmp_path):
    tensors, random_ = {"a.lora_A.weight": torch.randn(4, 4)}, random.Random(3)
    header = {"format": "rollout-trainer-1", "rank": "4"}
    write_tensors(tmp_path / "l.safetensors", tensors, sealed(tensors, header))
    whole = (tmp_path / "l.safetensors").read_bytes()
    read_file(tmp_path / "l.safetensors")
    for _ in range(200):
        (tmp_path / "l.safetensors").write_bytes(broken := damaged(whole, random_))
        if broken == whole or broken.rstrip(b" ") == whole.rstrip(b" "):
            continue
        with suppress(ValueError):
            got, own = read_file(tmp_path / "l.safetensors")
            # What is not refused has lost its seal: no file of ours any more by its header's own words.
            same_values = torch.equal(got["a.lora_A.weight"], tensors["a.lora_A.weight"])
            assert "rollout_trainer_digest" not in own or same_values


def test_states_of_earlier_versions_are_read(toy_source, make_data, make_config, tmp_path):
    from safetensors.torch import safe_open, save_file

    data = make_data()
    run = train(start(tmp_path, "t", toy_source, data, make_config()), 2)
    path = run.folder.state_path(2)
    with safe_open(path, "pt") as file:
        header = {"state": file.metadata()["state"]}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, header)
    config = json.loads((run.folder.path / "config.json").read_text())
    del config["digest"]
    (run.folder.path / "config.json").write_text(json.dumps(config))
    assert same(train(reopen(run.folder.path, toy_source, data), 2).state, train(run, 2).state)


# --- other processes --------------------------------------------------------------------------------

LOCKING = """
import sys, time
sys.path.insert(0, {unit!r})
from killed_training import register_package
register_package()
from pathlib import Path
from rollout_trainer.training.runs.folder import RunFolder
with RunFolder(Path({path!r})).held():
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def other(toy_source, make_data, make_config, tmp_path):
    """A run that another process trains, and that process."""
    run = start(tmp_path, "t", toy_source, make_data(), make_config())
    script = LOCKING.format(unit=str(Path(__file__).parents[1]), path=str(run.folder.path))
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield run, process
    process.kill()
    process.wait()


def test_a_run_that_another_process_trains_is_left_alone(other):
    run, process = other
    assert run.folder.is_held
    with pytest.raises(
        RuntimeError, match="t-0001 must not be in training to be trained on, but another process"
    ):
        train(run, 1)
    with pytest.raises(RuntimeError, match="t-0001 is being trained"):
        run.folder.remove()
    process.kill()  # whatever it died of, its lock is gone with it
    process.wait()
    assert not run.folder.is_held
    assert train(run, 1).step == 1
    assert not (run.folder.path / ".lock").exists()
    run.folder.remove()


def test_what_killed_processes_left_half_written_is_swept(toy_source, make_data, make_config, tmp_path):
    run = start(tmp_path / "runs", "t", toy_source, make_data(), make_config())
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = run.folder.path / f"state-00000009.safetensors.{dead.pid}-0123abcd.partial"
    film = run.folder.film_folder(3) / f"frame.jpg.{dead.pid}-0123abcd.partial"
    lora = tmp_path / "loras" / f"mine.{dead.pid}-0123abcd.partial"
    alive = tmp_path / "loras" / f"mine.{os.getpid()}-0123abcd.partial"
    strange = tmp_path / "loras" / "download.partial"
    for path in (left, film, lora, alive, strange):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    sweep(tmp_path / "runs")
    assert not left.exists()
    assert not film.exists()
    save_lora(run, tmp_path / "loras", "mine")
    assert not lora.exists()
    assert alive.exists()
    assert strange.exists()
    left.write_bytes(b"half")
    train(run, 1)
    assert not left.exists()


def test_exports_of_one_name_at_once_are_all_there(toy_source, make_data, make_config, tmp_path):
    run = start(tmp_path / "runs", "t", toy_source, make_data(), make_config())
    paths, barrier = [], threading.Barrier(8)

    def export():
        barrier.wait()
        for _ in range(5):
            paths.append(save_lora(run, tmp_path / "loras", "mine"))

    threads = [threading.Thread(target=export) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 40
    assert {p.name for p in (tmp_path / "loras").iterdir()} == {p.name for p in paths}


def test_a_place_without_links_still_never_overwrites(
    toy_source, make_data, make_config, tmp_path, monkeypatch
):
    run = start(tmp_path / "runs", "t", toy_source, make_data(), make_config())

    def refuse(*args):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert [save_lora(run, tmp_path / "loras", "a").name for _ in range(3)] == [
        "a.safetensors", "a-2.safetensors", "a-3.safetensors"
    ]  # fmt: skip
    assert len(list((tmp_path / "loras").iterdir())) == 3


def test_partial_files_have_names_of_their_own(tmp_path):
    assert partial_path(tmp_path / "a") != partial_path(tmp_path / "a")
    sweep_partials(tmp_path / "nowhere")


# --- full disks -------------------------------------------------------------------------------------


def full_while(monkeypatch, occupied):
    """Saving a state fails for want of space while `occupied()`."""
    real = files.replace_file

    def replace_file(path, content):
        if path.name.startswith("state-") and path.suffix == ".safetensors" and occupied(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, content)

    monkeypatch.setattr(files, "replace_file", replace_file)


def test_the_last_state_makes_room_of_films_and_states_on_the_way(
    make_source, make_data, make_config, tmp_path, monkeypatch, caplog
):
    config, data = make_config(save_every=1, keep=0, preview_every=2), make_data()
    whole = train(start(tmp_path / "w", "t", make_source("flow"), data, config), 6)
    run = start(tmp_path, "t", make_source("flow"), data, config)
    there = lambda: [*run.folder.film_steps(), *run.folder.steps()]  # noqa: E731
    full_while(monkeypatch, lambda path: "00000006" in path.name and len(there()) > 4)
    with caplog.at_level(logging.WARNING):
        run = train(run, 6)
    assert same(run.state, whole.state)
    assert run.folder.film_steps() == []
    assert {0, 5, 6} <= set(run.folder.steps())
    assert "the disk is full: deleted the film of step 0" in caplog.text


def test_a_disk_that_stays_full_is_told_in_one_line_with_path_and_need(
    make_source, make_data, make_config, tmp_path, monkeypatch
):
    run = start(tmp_path, "t", make_source("flow"), make_data(), make_config(save_every=2))
    full_while(monkeypatch, lambda path: "00000006" in path.name)
    with pytest.raises(
        RuntimeError,
        match=r"state-00000006\.safetensors must be writable, got No space left .* MB needed, .* MB free",
    ) as told:
        train(run, 6)
    assert "\n" not in str(told.value)
    assert run.folder.steps() == [0, 4]  # the newest on the way is never given up


def test_whatever_fails_in_a_save_on_the_way_is_a_warning(
    make_source, make_data, make_config, tmp_path, monkeypatch, caplog
):
    run = start(tmp_path, "t", make_source("flow"), make_data(), make_config(save_every=1))
    save, faults = (
        RunFolder.save,
        iter([TypeError("no"), MemoryError(), OSError(5, "x"), ZeroDivisionError("y")]),
    )

    def failing(folder, state, *args, **kwargs):
        if state.step < 5 and (fault := next(faults, None)):
            raise fault
        return save(folder, state, *args, **kwargs)

    monkeypatch.setattr(RunFolder, "save", failing)
    assert train(run, 6).folder.steps() == [0, 5, 6]
    for step, text in ((1, "no"), (2, "MemoryError"), (4, "y")):
        assert f"step {step} not saved, training goes on: {text}" in caplog.text


def test_states_are_saved_by_time(make_source, make_data, make_config, tmp_path, monkeypatch, saved_at_once):
    """A crash loses ten minutes at most, whatever save_every is."""
    now = [0.0]
    monkeypatch.setattr("rollout_trainer.training.runs.run.time.monotonic", lambda: now[0])
    run = start(tmp_path, "t", make_source("flow"), make_data(), make_config())
    assert run.config.save_minutes == 10
    told = []

    def watch(report):
        now[0] += 240
        told.append(report.saved)

    train(run, 8, watch)
    assert told == [0, 0, 0, 4, 0, 0, 7, 0]
    off = start(tmp_path, "o", make_source("flow"), make_data(), make_config(save_minutes=0.0))
    told.clear()
    train(off, 8, watch)
    assert not any(told)


# --- starts that fail -------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["build_optimizer", "EMA", "fuse"])
def test_a_start_that_fails_leaves_the_model_as_it_was(
    where, make_source, make_data, make_config, tmp_path, monkeypatch
):
    source, config = make_source("flow"), make_config(ema_decay=0.9)
    modules = [type(m) for m in source.module.modules()]

    def fail(*args, **kwargs):
        raise MemoryError

    target = {
        "build_optimizer": "rollout_trainer.training.trainer.trainer.build_optimizer",
        "EMA": "rollout_trainer.training.trainer.trainer.EMA",
        "fuse": "rollout_trainer.training.lora.adapter.fuse",
    }[where]
    with monkeypatch.context() as patch:
        patch.setattr(target, fail)
        with pytest.raises(MemoryError):
            start(tmp_path, "t", source, make_data(), config)
    assert [type(m) for m in source.module.modules()] == modules
    train(start(tmp_path, "t", source, make_data(), config), 1)  # said "must carry no adapter"


def test_a_loaded_lora_is_in_the_average_too(make_source, make_data, make_config, tmp_path):
    source, data = make_source("flow"), make_data()
    loaded = train(start(tmp_path, "a", source, data, make_config()), 5).adapter
    run = start(tmp_path, "b", source, data, make_config(ema_decay=0.9), adapter=loaded)
    assert all(torch.equal(run.adapter.tensors[k], v) for k, v in loaded.tensors.items())


def test_a_loaded_lora_keeps_its_effect_under_other_settings(make_source, make_data, make_config, tmp_path):
    """Before, alpha 16 over a file of alpha 2 multiplied it by eight."""
    source, data = make_source("flow"), make_data()
    loaded = train(start(tmp_path, "a", source, data, make_config()), 5).adapter
    run = start(tmp_path, "b", source, data, make_config(lora=LoRAConfig(rank=2, alpha=16.0)), adapter=loaded)
    x = torch.linspace(-1, 1, 4 * 16).view(1, 4, 4, 4)
    outputs = []
    for adapter in (loaded, run.adapter):
        with torch.no_grad(), attached(source.module, adapter):
            outputs.append(source.module(x, torch.tensor([0.5]), torch.ones(1, 3, 6)))
    torch.testing.assert_close(*outputs)


# --- learning that is none --------------------------------------------------------------------------


def lines(caplog):
    return [r.message for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_healthy_training_says_nothing(toy_source, make_data, make_config, tmp_path, caplog):
    train(start(tmp_path, "t", toy_source, make_data(), make_config(**EVERYTHING)), 60)
    assert lines(caplog) == []


def test_a_rate_that_ruins_the_lora_is_said(toy_source, make_data, make_config, tmp_path, caplog):
    config, live = make_config(optimizer=OptimizerConfig(lr=10.0)), []
    run = start(tmp_path, "t", toy_source, make_data(), config)
    panel = Live(run, 60)

    def watch(report):
        panel.add(report)
        live.append(panel.facts()["doubts"])

    train(run, 60, watch)
    assert live[0] == []
    assert ["the loss has risen from" in line for line in live[-1]] == [True]
    assert any("the loss has risen from" in line and "lower learning_rate" in line for line in lines(caplog))
    assert len(lines(caplog)) == 1


def test_masks_that_are_all_black_are_said(toy_source, make_data, make_config, tmp_path, caplog):
    from dataclasses import replace

    data = make_data(masked=True)
    data = replace(data, buckets=tuple(replace(b, masks=torch.zeros_like(b.masks)) for b in data.buckets))
    train(start(tmp_path, "t", toy_source, data, make_config()), 3)
    assert any("3 of 3 steps count nothing, the first is step 1" in line for line in lines(caplog))


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": OptimizerConfig(lr=1e-10, weight_decay=0)},
        {"lora": LoRAConfig(rank=2, alpha=0.0), "optimizer": OptimizerConfig(lr=1e-2, weight_decay=0)},
    ],
    ids=["rate", "alpha"],
)
def test_weights_that_do_not_move_are_said(change, toy_source, make_data, make_config, tmp_path, caplog):
    train(start(tmp_path, "t", toy_source, make_data(), make_config(**change)), 3)
    assert any("the weights hardly move" in line for line in lines(caplog))


def test_prodigy_with_a_rate_that_is_not_its_own_is_said(
    toy_source, make_data, make_config, tmp_path, caplog
):
    config = make_config(optimizer=OptimizerConfig("prodigy", lr=1e-4))
    train(start(tmp_path, "t", toy_source, make_data(), config), 2)
    assert any(
        "learning_rate should be 1 with prodigy" in line and "got 0.0001" in line for line in lines(caplog)
    )


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_steps_past_the_planned_end_are_said_or_have_a_schedule_of_their_own(
    schedule, toy_source, make_data, make_config, tmp_path, caplog
):
    config = make_config(steps=6, optimizer=OptimizerConfig(lr=1e-2, schedule=schedule, weight_decay=0))
    run = train(start(tmp_path, "t", toy_source, make_data(), config), 6)
    assert lines(caplog) == []
    past = train(run, 3)
    assert any(
        "the learning rate is 0 for 3 of the 3 steps, from step 6 on" in line for line in lines(caplog)
    )
    assert list(past.history.columns["lr"][6:]) == [0.0] * 3
    caplog.clear()
    own = train(branch(run, None, 5e-3, 3), 3)
    assert own.history.columns["lr"][6] == 5e-3
    assert list(own.history.columns["lr"][6:]) == [
        OptimizerConfig(lr=5e-3, schedule=schedule).lr_at(i, 3) for i in range(3)
    ]
    assert any(not torch.equal(own.adapter.tensors[k], run.adapter.tensors[k]) for k in run.adapter.tensors)
    assert lines(caplog) == []
    again = train(branch(run, None, 1e-2, 3), 3)  # the run's own rate, said anew past its end
    assert again.history.columns["lr"][6] == 1e-2


def test_settings_have_their_schedules():
    config = TrainConfig(steps=10, optimizer=OptimizerConfig(lr=1.0, schedule="linear"))
    assert [config.lr_at(s) for s in (0, 5, 10, 11)] == [1.0, 0.5, 0.0, 0.0]


@pytest.mark.parametrize("where", ["latents", "cond"])
def test_a_sample_that_is_not_finite_is_named(where, toy_source, make_data, make_config, tmp_path, caplog):
    """Before, the learning rate was blamed."""
    from dataclasses import replace

    data, config = make_data(), make_config(batch_size=1, max_nonfinite=2)
    bucket = data.buckets[0]
    latents, cond = bucket.latents.clone(), {name: v.clone() for name, v in bucket.cond.items()}
    for values in (latents,) if where == "latents" else cond.values():
        values[1:] = float("nan")
    names = tuple(f"picture {i}.png" for i in range(len(bucket)))
    spoilt = replace(bucket, latents=latents, cond=cond, names=names)
    run = start(tmp_path, "t", toy_source, replace(data, buckets=(spoilt,)), config)
    with pytest.raises(FloatingPointError, match=r"picture \d\.png is spoilt"):
        train(run, 40)
    assert any("picture" in line and "must hold finite numbers alone" in line for line in lines(caplog))
    assert not any("learning rate" in line for line in lines(caplog))


def test_a_header_that_is_no_header_is_one_printable_line(toy_source, make_data, make_config, tmp_path):
    """What libraries say of it repeats it, escapes and all, or lists all that they know."""
    run = train(start(tmp_path, "t", toy_source, make_data(), make_config()), 1)
    state = run.folder.state_path(1)
    lora = tmp_path / "l.safetensors"
    for header in (
        b'{"a\x1b[2J\\n":1}',
        b'{"a":{"dtype":"F30","shape":[1],"data_offsets":[0,4]}}',
        b"\xff" * 9,
    ):
        for path, read in ((state, lambda: run.folder.load(1)), (lora, lambda: read_file(lora))):
            path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
            with pytest.raises((RuntimeError, ValueError), match="must be a readable") as told:
                read()
            assert str(told.value).isprintable()
            assert len(str(told.value)) < 400


def test_what_killed_processes_left_in_a_cache_is_swept(tmp_path):
    from rollout_trainer.training.data.cache import TensorCache
    from rollout_trainer.training.data.facts import Facts

    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for place in (tmp_path / "cache", tmp_path / "cache" / "folders"):
        place.mkdir(exist_ok=True)
        (place / f"abc.safetensors.{dead.pid}-0123abcd.partial").write_bytes(b"half")
        (place / f"abc.safetensors.{os.getpid()}-0123abcd.partial").write_bytes(b"half")
    TensorCache(tmp_path / "cache").ensure("ab" * 16, lambda: {"x": torch.zeros(1)})
    Facts(tmp_path, tmp_path / "cache" / "folders")
    left = sorted(p.name for p in (tmp_path / "cache").rglob("*.partial"))
    assert left == [f"abc.safetensors.{os.getpid()}-0123abcd.partial"] * 2
