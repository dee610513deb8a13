import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from PIL import Image

from rollout_trainer import host
from rollout_trainer.host import io, report
from rollout_trainer.host.standalone import host as standalone


def test_outside_comfyui_the_stand_ins_are_chosen():
    assert host.current().name == "standalone"
    assert io.__name__.endswith("host.schema")
    assert issubclass(host.Cancelled, BaseException)
    assert not issubclass(host.Cancelled, Exception)


def test_images_are_numbered_and_truncated_like_comfyui(tmp_path):
    here = standalone.StandaloneHost(tmp_path)
    images = torch.full((2, 3, 5, 3), 0.999)
    first = here.save_images(images, "grid/before")
    second = here.save_images(images[:1], "grid/before")
    assert [item["filename"] for item in first + second] == [f"before_0000{n}_.png" for n in (1, 2, 3)]
    assert first[0]["subfolder"] == "grid"
    saved = Image.open(tmp_path / "grid" / "before_00001_.png")
    assert saved.size == (5, 3)
    assert saved.getpixel((0, 0)) == (254, 254, 254)
    assert here.images[0] == "grid/before_00001_.png"


@pytest.mark.parametrize("prefix", ["../escaped", ".", "..", "a/..", "a/../..", "/", "./", "a/../../out"])
def test_images_cannot_leave_the_output_folder(prefix, tmp_path):
    """A prefix that is no name but the folder itself would be a name beside it: ``out_00001_.png``."""
    with pytest.raises(ValueError, match="filename_prefix must"):
        standalone.StandaloneHost(tmp_path / "out").save_images(torch.zeros(1, 2, 2, 3), prefix)
    assert list(tmp_path.rglob("*.png")) == []


def test_saved_images_carry_the_workflow(tmp_path):
    class Saver(io.ComfyNode):
        hidden = io.HiddenHolder(prompt={"1": {}}, extra_pnginfo={"workflow": {"nodes": []}})

    standalone.StandaloneHost(tmp_path).save_images(torch.zeros(1, 2, 2, 3), "x", node=Saver)
    info = Image.open(tmp_path / "x_00001_.png").info
    assert json.loads(info["prompt"]) == {"1": {}}
    assert json.loads(info["workflow"]) == {"nodes": []}


def test_reports_merge_by_section(tmp_path):
    here = standalone.StandaloneHost(tmp_path)
    here.report({"seed": 1, "loss": {"total": [1.0]}})
    here.report({"seed": 2, "loss": {"base": [0.5]}})
    assert here.sections == {"seed": 2, "loss": {"total": [1.0], "base": [0.5]}}


def test_paths_are_found_next_to_the_graph_and_in_the_pack(tmp_path, monkeypatch):
    (tmp_path / "graph").mkdir()
    (tmp_path / "graph" / "faces").mkdir()
    monkeypatch.chdir(tmp_path)
    here = standalone.StandaloneHost(tmp_path / "out", folder=tmp_path / "graph")
    assert here.resolve_path("faces") == tmp_path / "graph" / "faces"
    assert here.resolve_path("host/schema.py") == standalone.PACK / "host" / "schema.py"
    assert here.resolve_path(str(tmp_path)) == tmp_path
    assert here.resolve_path("nowhere") == tmp_path / "nowhere"


def test_a_cancel_is_raised_at_the_next_update_and_stays_pending(tmp_path):
    here = standalone.StandaloneHost(tmp_path, quiet=True)
    bar = here.progress(3)
    bar.update(1, "loss 0.5")
    here.cancel()
    with pytest.raises(host.Cancelled):
        bar.update(2)
    assert here.cancel_requested()
    with pytest.raises(host.Cancelled):
        here.check_cancelled()


def test_a_second_interrupt_stops_at_once(tmp_path):
    here = standalone.StandaloneHost(tmp_path)
    with standalone.interruptible(here):
        os.kill(os.getpid(), signal.SIGINT)
        assert here.cancel_requested()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_second_interrupt_of_a_launched_process_does_nothing(tmp_path):
    """The terminal sends one, and the launcher passes on another."""
    here = standalone.StandaloneHost(tmp_path)
    with standalone.interruptible(here, patient=True):
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
    assert here.cancel_requested()


def test_a_report_is_valid_json_whatever_the_loss_was(tmp_path):
    path = tmp_path / "new" / "report.json"
    report.write(path, {"loss": {"total": [1.0, float("nan"), float("inf")]}, "lora": tmp_path})
    assert json.loads(path.read_text()) == {"loss": {"total": [1.0, None, None]}, "lora": str(tmp_path)}
    with pytest.raises(TypeError, match="report values must be plain data, got Tensor"):
        report.write(path, {"loss": torch.zeros(1)})
    assert [item.name for item in path.parent.iterdir()] == ["report.json"]


def test_the_current_host_is_restored(tmp_path):
    outer, inner = standalone.StandaloneHost(tmp_path), standalone.StandaloneHost(tmp_path)
    with standalone.installed(outer):
        with standalone.installed(inner):
            assert host.current() is inner
        assert host.current() is outer


@pytest.mark.skipif(os.name == "nt", reason="asking a process whether it lives would end it there")
def test_what_killed_processes_left_of_a_report_is_swept(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for process in (dead.pid, os.getpid()):
        (tmp_path / f".report.json.{process}.part").write_text("half")
    report.write(tmp_path / "report.json", {"a": 1})
    report.write(tmp_path / "report.json", {"a": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
