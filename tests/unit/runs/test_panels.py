"""What panels showed and what films measured, found again in run folders, whatever else lies there."""

import json
import os
import time

import pytest

from rollout_trainer.training.runs import panels
from rollout_trainer.training.runs.browse import Runs
from rollout_trainer.training.runs.folder import RunFolder
from rollout_trainer.training.runs.live import FILMS


def put(runs, name, changed, **data):
    folder = runs / name
    folder.mkdir(parents=True)
    path = folder / "panel.json"
    path.write_text(json.dumps({"workflow": "w", "node": "8", "state": "done", **data}))
    os.utime(path, ns=(changed, changed))
    return path


def test_the_newest_facts_of_each_node_are_found(tmp_path):
    put(tmp_path, "a-0001", 100, step=1)
    newest = put(tmp_path, "a-0002", 300, step=2, state="running", seconds_left=5)
    put(tmp_path, "a-0003", 200, step=3)
    put(tmp_path, "b-0001", 100, step=4, node="3:9")
    put(tmp_path, "c-0001", 900, step=5, workflow="other")
    put(tmp_path, "d-0001", 900).write_text('{"workflow": "w"')  # cut off
    (tmp_path / "no-run").mkdir()
    (tmp_path / "file").write_text("")
    kept = panels.Panels()
    found = kept.of(tmp_path, "w")
    assert {node: (data["step"], data["state"]) for node, data in found.items()} == {
        "8": (2, "running"),
        "3:9": (4, "done"),
    }
    newest.unlink()
    assert kept.of(tmp_path, "w")["8"]["step"] == 3
    assert kept.of(tmp_path / "nowhere", "w") == {}


def test_the_facts_of_every_stage_that_trained_in_a_folder_are_found(tmp_path):
    folder = RunFolder.create(tmp_path, "a", {})
    for node, step in (("9", 4), ("10", 8), ("10", 9), ("11", 12)):
        folder.keep_panel({"workflow": "w", "node": node, "state": "done", "step": step})
    found = panels.Panels().of(tmp_path, "w")
    assert {node: facts["step"] for node, facts in found.items()} == {"9": 4, "10": 9, "11": 12}
    assert all("stages" not in facts for facts in found.values())
    assert folder.panel()["step"] == 12
    folder.keep_panel({"workflow": "other", "node": "9", "state": "done", "step": 1})
    assert panels.Panels().of(tmp_path, "w") == {}
    folder.panel_path.write_text("[")
    folder.keep_panel({"workflow": "w", "node": "9", "state": "done", "step": 2})
    assert panels.Panels().of(tmp_path, "w")["9"]["step"] == 2


def test_a_thousand_runs_cost_no_second_and_are_read_once(tmp_path, monkeypatch):
    curve = {name: [0.12345] * 300 for name in ("step", "base", "fc", "adr", "validation")}
    for i in range(1000):
        put(tmp_path, f"a-{i:04d}", 100 + i, step=i, curve=curve)
    kept, reads = panels.Panels(), []
    read = RunFolder.panel
    monkeypatch.setattr(RunFolder, "panel", lambda run: reads.append(run) or read(run))
    times = []
    for _ in range(2):
        begin = time.perf_counter()
        assert kept.of(tmp_path, "w")["8"]["step"] == 999
        times.append(time.perf_counter() - begin)
    print(f"1000 runs: {times[0]:.3f} s, again {times[1]:.3f} s")
    assert len(reads) == 1000 + 1 + 1
    assert times[1] < 0.5


# --- films --------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(tmp_path / "runs", "run", {}).path


@pytest.fixture
def runs(run, tmp_path):
    return Runs(run.parent, tmp_path, tmp_path / "loras")


def put_film(run, step, frames=2, told=True):
    folder = run / "film" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    for i in range(frames):
        (folder / f"{i:02d}.jpg").write_bytes(b"jpeg")
    if told:
        numbers = {name: [0.5] * frames for name in ("sigmas", "drift", "floor")}
        (folder / "film.json").write_text(json.dumps({"step": step, "frames": frames, **numbers}))
    return folder


def test_whole_films_are_told_of_in_order(runs, run):
    for step in (100, 0, 50):
        put_film(run, step)
    put_film(run, 150, told=False)
    (put_film(run, 200) / "film.json").write_text("{")
    told = runs.films("run-0001")
    assert [film["step"] for film in told] == [0, 50, 100]
    assert all(film["version"] > 0 for film in told)
    with pytest.raises(LookupError):
        runs.films("nowhere")


def test_of_many_films_some_are_told_of_and_the_last(runs, run):
    for step in range(250):
        put_film(run, step, frames=0)
    steps = [film["step"] for film in runs.films("run-0001")]
    assert len(steps) <= FILMS
    assert (steps[0], steps[-1]) == (0, 249)


def test_only_frames_of_whole_films_inside_the_run_are_found(runs, run, tmp_path):
    folder = put_film(run, 7)
    assert runs.frame("run-0001", 7, 1) == folder / "01.jpg"
    put_film(run, 8, told=False)
    outside = put_film(tmp_path / "elsewhere", 9)
    (run / "film" / "step-00000009").symlink_to(outside)
    (folder / "02.jpg").symlink_to(outside / "01.jpg")
    for step, frame in ((7, 3), (8, 0), (9, 0), (7, 2), (10**11, 0)):
        with pytest.raises(LookupError):
            runs.frame("run-0001", step, frame)
    with pytest.raises(LookupError):
        runs.frame("../elsewhere", 9, 0)
