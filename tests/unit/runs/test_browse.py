"""What the front end may see and do: runs directly inside the runs folder, whatever else lies there."""

import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rollout_trainer.training.files import lora_header
from rollout_trainer.training.lora.adapter import LoRAConfig
from rollout_trainer.training.lora.file import comfy_names, folded
from rollout_trainer.training.runs.browse import Runs, run_path
from rollout_trainer.training.runs.export import metadata
from rollout_trainer.training.runs.folder import DELETED, RunFolder
from rollout_trainer.training.runs.live import DRAWN, Live
from rollout_trainer.training.runs.run import start, train

EVIL = "<img src=x onerror=alert(1)>"
UNICODE = "絵文字 é %2e%2e #1 & ?"


@pytest.fixture
def make_run(tmp_path, make_data, make_config, toy_source):
    """``make_run(name, steps)``: a run that was trained for so many steps."""

    def made(name="run", steps=3, **changes):
        run = start(tmp_path / "runs", name, toy_source, make_data(), make_config(**changes))
        return train(run, steps) if steps else run

    return made


@pytest.fixture
def runs(tmp_path):
    return Runs(tmp_path / "runs", tmp_path, tmp_path / "loras")


def film(run, step, frames):
    folder = run.folder.path / "film" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    for i in range(frames):
        (folder / f"{i:02d}.jpg").write_bytes(b"picture")
    return folder


# --- a name becomes a path ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a run", EVIL, UNICODE])
def test_a_run_is_found_by_its_name(name, tmp_path):
    folder = RunFolder.create(tmp_path, name, {})
    assert run_path(tmp_path, f"{name}-0001") == folder.path


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../secret",
        "a/../../secret",
        "/etc",
        "..\\secret",
        "C:secret",
        "a\0b",
        "none",
        "link",
        "bare",
        ".hidden",
        "x" * 5000,
        "\udcff",
    ],
)
def test_nothing_else_is(name, tmp_path):
    root = tmp_path / "runs"
    secret = RunFolder.create(tmp_path, "secret", {}).path.rename(tmp_path / "secret")
    root.mkdir()
    (root / "link").symlink_to(secret)
    (root / "bare").mkdir()
    RunFolder.create(root, "hidden", {}).path.rename(root / ".hidden")
    with pytest.raises(LookupError, match="no run of that name"):
        run_path(root, name)


def test_a_runs_folder_behind_a_link_is_one(tmp_path):
    real = RunFolder.create(tmp_path / "disk", "run", {}).path
    (tmp_path / "runs").symlink_to(real.parent)
    assert run_path(tmp_path / "runs", "run-0001").samefile(real)


# --- the list -----------------------------------------------------------------------------------


def test_a_list_says_what_the_folders_hold_newest_first(runs, make_run):
    old, evil = make_run("old", 2), make_run(EVIL, 5)
    for path in old.folder.path.iterdir():
        os.utime(path, (1000, 1000))
    film(evil, 2, 3)
    film(evil, 5, 3).joinpath("film.json").write_text("{}")
    film(evil, 9, 3)  # not whole: without a film.json
    first, second = runs.listed()["runs"]
    assert (first["name"], second["name"], second["modified"]) == (f"{EVIL}-0001", "old-0001", 1000)
    assert (first["step"], first["planned"], first["model"], first["film"]) == (5, 100, "toy", 5)
    totals = evil.history.columns["total"]  # of fewer steps than the mean is taken over
    assert first["loss"] == pytest.approx(sum(totals) / len(totals))
    assert first["loss"] != pytest.approx(totals[-1])
    files = [p for p in evil.folder.path.rglob("*") if p.is_file()]
    assert first["size"] == sum(p.stat().st_size for p in files)
    assert first["training"] is second["training"] is False


def test_no_runs_folder_is_no_runs(runs):
    assert runs.listed() == {"runs": [], "skipped": []}


@pytest.mark.parametrize("config", ["", "[]", "[" * 100_000, "{}", '{"version": 99}', "\0", b"\xff\xfe"])
def test_a_broken_or_foreign_folder_is_named_and_left_out(config, runs, make_run):
    make_run()
    (runs.root / "broken").mkdir()
    (runs.root / "broken" / "config.json").write_bytes(
        config if isinstance(config, bytes) else config.encode()
    )
    (runs.root / "foreign").mkdir()
    (runs.root / "link").symlink_to(runs.root / "run-0001")
    (runs.root / "note.txt").write_text("not a folder")
    listed = runs.listed()
    assert [run["name"] for run in listed["runs"]] == ["run-0001"]
    assert listed["skipped"] == ["broken", "foreign", "link"]
    with pytest.raises(LookupError):
        runs.details("broken")


BROKEN = [b"", b"[]", b'{"loss": NaN}', b'{"loss": "<b>"}', b'{"loss": 1' + b"0" * 400 + b"}", b"[" * 100_000]


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_state_costs_its_loss_and_the_curve_goes_back_to_a_whole_one(content, runs, make_run):
    run = make_run(steps=4)
    state = run.folder.state_path(9)
    state.write_bytes(content)
    state.with_suffix(".json").write_bytes(content)
    (run.folder.path / "panel.json").write_bytes(content)
    (listed,) = runs.listed()["runs"]
    assert (listed["step"], listed["loss"]) == (9, None)
    details = runs.details("run-0001")
    assert details["curve"]["step"] == [1, 2, 3, 4]
    assert details["steps"] == [0, 4, 9]


def test_a_state_that_is_no_history_is_no_error(runs, make_run, tmp_path):
    import torch

    run = make_run(steps=0)
    save_file({"history.base": torch.ones(2, 2)}, run.folder.state_path(9), {"state": '{"step": 9}'})
    assert runs.details("run-0001")["curve"]["step"] == []


@pytest.mark.parametrize(
    "plain", [{}, {"config": []}, {"config": {"steps": "many"}}, {"model": 3, "config": None}]
)
def test_settings_that_are_not_ours_are_left_out(plain, runs):
    RunFolder.create(runs.root, "odd", plain)
    details = runs.details("odd-0001")
    assert (details["planned"], details["model"], details["steps"], details["step"]) == (None, "", [], None)
    assert details["settings"] == {} or "config" not in plain or plain["config"] == {}
    json.dumps(details, allow_nan=False)


# --- one run ------------------------------------------------------------------------------------


def test_a_run_has_its_settings_states_and_the_curve_of_its_history(runs, make_run):
    run = make_run(steps=4)
    details = runs.details("run-0001")
    json.dumps(details, allow_nan=False)
    assert details["path"] == str(run.folder.path)
    assert details["folder"] == "runs/run-0001"
    assert details["steps"] == [0, 4]
    assert (details["settings"]["lora"]["rank"], details["settings"]["optimizer"]["lr"]) == (2, 1e-2)
    assert details["curve"]["base"] == pytest.approx(run.history.columns["base"], rel=1e-4)


@pytest.mark.parametrize(("told", "shown"), [(2, 4), (4, 4), (6, 6)])
def test_the_panel_knows_more_after_a_crash_and_less_after_a_late_save(told, shown, runs, make_run):
    run = make_run(steps=4)
    facts = {"step": told, "curve": {"step": [1, told], **{name: [None, 0.5] for name in DRAWN}}}
    (run.folder.path / "panel.json").write_text(json.dumps(facts))
    curve = runs.details("run-0001")["curve"]
    assert curve["step"][-1] == shown
    assert (curve["base"] == [None, 0.5]) is (told >= 4)


def test_the_panel_and_the_history_give_one_curve(runs, make_run):
    run = make_run(steps=0)
    live = Live(run, 5)
    run = train(run, 5, live.add)
    from_history = runs.details("run-0001")["curve"]
    (run.folder.path / "panel.json").write_text(json.dumps(live.facts()))
    assert runs.details("run-0001")["curve"] == from_history == live.facts()["curve"]


def test_a_thumbnail_is_the_last_picture_of_the_newest_film(runs, make_run, tmp_path):
    run = make_run()
    with pytest.raises(LookupError):
        runs.thumbnail("run-0001")
    folder = film(run, 3, 101)
    (folder / "film.json").write_text("{}")
    assert runs.thumbnail("run-0001") == folder / "100.jpg"
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (folder / "101.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(LookupError):
        runs.thumbnail("run-0001")


# --- deleting -----------------------------------------------------------------------------------


def test_a_deleted_run_is_gone_and_what_its_links_name_is_not(runs, make_run, tmp_path):
    run, kept = make_run(), make_run("kept")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("kept")
    (run.folder.path / "link").symlink_to(tmp_path / "precious")
    runs.remove("run-0001")
    assert [p.name for p in runs.root.iterdir()] == [kept.folder.path.name]
    assert (tmp_path / "precious" / "file").read_text() == "kept"
    with pytest.raises(LookupError):
        runs.remove("run-0001")


def test_a_run_in_training_is_marked_and_refuses(runs, make_run):
    run = make_run(steps=1)
    seen = []

    def watch(_):
        seen.append(runs.listed()["runs"][0]["training"])
        with pytest.raises(RuntimeError, match="run-0001 is being trained; stop it before deleting it"):
            runs.remove("run-0001")

    train(run, 1, watch)
    assert seen == [True]
    assert runs.listed()["runs"][0]["training"] is False
    runs.remove("run-0001")


def test_a_deletion_that_was_interrupted_shows_nothing_and_is_finished_later(
    runs, make_run, monkeypatch, tmp_path
):
    make_run()

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            runs.remove("run-0001")
    (left,) = runs.root.iterdir()
    assert left.name.startswith(DELETED)
    assert runs.listed() == {"runs": [], "skipped": []}
    (tmp_path / "precious").mkdir()
    (runs.root / f"{DELETED}link").symlink_to(tmp_path / "precious")
    runs.sweep()
    assert not left.exists()
    assert (tmp_path / "precious").is_dir()


# --- the LoRA of a saved state ------------------------------------------------------------------


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_the_lora_of_a_saved_state_is_written_without_the_model(ema, runs, make_run, toy_source, tmp_path):
    run = make_run(name="run", steps=3, ema_decay=ema)
    assert runs.save_lora("run-0001", 3) == "run-0001-step-3.safetensors"
    assert runs.save_lora("run-0001", 3) == "run-0001-step-3-2.safetensors"
    saved = load_file(tmp_path / "loras" / "run-0001-step-3.safetensors")
    expected = comfy_names(folded(run.adapter), "diffusion_model")
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in expected.items())
    with safe_open(tmp_path / "loras" / "run-0001-step-3.safetensors", "pt") as file:
        assert file.metadata() == lora_header(expected, metadata(run))


def test_the_lora_of_a_saved_state_brings_the_graph_that_trained_it(runs, make_run, tmp_path):
    # The front end opens it where the file is dropped on the page, as with a picture.
    folder = make_run().folder
    folder.keep_workflow(
        {"prompt": {"1": {"inputs": {"folder": "/home/me/cats"}}}, "workflow": {"nodes": []}}
    )
    runs.save_lora("run-0001", 3)
    with safe_open(tmp_path / "loras" / "run-0001-step-3.safetensors", "pt") as file:
        header = file.metadata()
    assert json.loads(header["workflow"]) == {"nodes": []}
    assert json.loads(header["prompt"]) == {"1": {"inputs": {"folder": "cats"}}}
    (folder.path / "workflow.json").write_text("{")
    assert folder.workflow() == {}


def test_a_lora_that_cannot_be_written_without_the_model_says_why(runs, make_run, tmp_path):
    make_run(lora=LoRAConfig(kind="dora", rank=2))
    with pytest.raises(ValueError, match="it is a DoRA; use Resume Training"):
        runs.save_lora("run-0001", 3)
    older = make_run().folder
    config = older.config()
    del config["model"]["lora_names"]
    (older.path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="does not say how its layers are named"):
        runs.save_lora(older.path.name, 3)
    with pytest.raises(LookupError):
        runs.save_lora(older.path.name, 2)
    with pytest.raises(LookupError):
        runs.save_lora("../run-0001", 3)
    assert not (tmp_path / "loras").exists()
