"""dev.py: sets up once, notices what changed, and fails with one clear line."""

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def dev(tmp_path, monkeypatch):
    """Give a fresh copy of the module that works on an empty checkout in tmp_path."""
    spec = importlib.util.spec_from_file_location("dev_under_test", ROOT / "dev.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    venv = tmp_path / ".venv"
    for name, value in (("ROOT", tmp_path), ("VENV", venv), ("STAMP", venv / "stamp"), ("LOG", venv / "log")):
        monkeypatch.setattr(module, name, value)
    for name in module.INSTALLED_FROM:
        (tmp_path / name).write_text(name)
    return module


@pytest.fixture
def steps(dev, monkeypatch):
    """Record the steps of a set-up instead of running them."""
    taken = []

    def record(title, command):
        taken.append(command)
        python = dev.venv_python()
        python.parent.mkdir(parents=True, exist_ok=True)
        python.touch()

    monkeypatch.setattr(dev, "step", record)
    monkeypatch.setattr(dev, "runs", lambda *command: True)
    return taken


def test_second_set_up_does_nothing(dev, steps):
    dev.set_up(None)
    assert len(steps) == 4  # .venv, torch, the packages, the checkout
    dev.set_up(None)
    assert len(steps) == 4


@pytest.mark.parametrize("name", ["pyproject.toml", "requirements-dev.txt", "constraints.txt"])
def test_a_changed_requirement_is_installed(dev, steps, name):
    dev.set_up(None)
    (dev.ROOT / name).write_text("changed")
    dev.set_up(None)
    assert len(steps) == 7  # the .venv is kept


def test_another_python_makes_venv_anew(dev, steps):
    dev.set_up(None)
    stamp = json.loads(dev.STAMP.read_text())
    dev.STAMP.write_text(json.dumps({**stamp, "python": "3.9"}))
    dev.set_up(None)
    assert steps[4][1:3] == ["-m", "venv"]


def test_a_venv_of_someone_else_is_left_alone(dev, steps):
    (dev.VENV / "lib").mkdir(parents=True)
    with pytest.raises(dev.DevError, match="was not made by dev"):
        dev.set_up(None)
    assert (dev.VENV / "lib").is_dir()


def test_torch_spec_is_split_for_pip_and_remembered(dev, steps):
    dev.set_up("torch==2.8.0 --index-url https://example.org/cpu")
    assert steps[1][-3:] == ["torch==2.8.0", "--index-url", "https://example.org/cpu"]
    dev.set_up(None)
    assert len(steps) == 4
    dev.set_up("torch==2.9.0")
    assert steps[4][-1] == "torch==2.9.0"


def test_an_interrupted_set_up_is_not_taken_for_a_finished_one(dev, steps, monkeypatch):
    dev.set_up(None)
    monkeypatch.setattr(dev, "install", lambda *arguments: (_ for _ in ()).throw(dev.DevError("no network")))
    with pytest.raises(dev.DevError):
        dev.set_up("torch==2.9.0")
    assert dev.read_stamp() == {}


def test_a_failing_step_shows_the_end_of_its_output_and_keeps_all_of_it(dev, capsys):
    dev.VENV.mkdir()
    script = "for i in range(100): print('line', i)\nraise SystemExit(3)"
    with pytest.raises(dev.DevError, match="installing x failed with exit code 3") as caught:
        dev.step("installing x", [sys.executable, "-c", script])
    assert caught.value.code == 1
    shown = capsys.readouterr().err.splitlines()
    assert shown == [f"line {i}" for i in range(100 - dev.TAIL_LINES, 100)]
    assert "line 0\n" in dev.LOG.read_text()


def test_an_old_python_is_refused(dev, monkeypatch):
    monkeypatch.setattr(dev.sys, "version_info", (3, 9, 18))
    with pytest.raises(dev.DevError, match=r"Python must be 3\.10 or newer"):
        dev.check_python()


def test_a_python_without_ensurepip_is_refused(dev, monkeypatch):
    monkeypatch.setattr(dev.importlib.util, "find_spec", lambda name: None if name == "ensurepip" else name)
    with pytest.raises(dev.DevError, match="no module ensurepip; install it"):
        dev.check_python()


def test_unknown_arguments_are_passed_on(dev):
    args, extra = dev.parse(["test", "-k", "rollout", "--torch", "torch==2.8.0", "-x", "tests/unit"])
    assert (args.command, args.torch) == ("test", "torch==2.8.0")
    assert extra == ["-k", "rollout", "-x", "tests/unit"]
    with pytest.raises(SystemExit) as caught:
        dev.parse(["setup", "--fast"])
    assert caught.value.code == 2


def test_a_failed_demo_ends_with_its_code_and_one_line(dev, steps, monkeypatch, capsys):
    monkeypatch.setattr(dev, "run", lambda *command, **options: 2)
    assert dev.main(["demo"]) == 2
    assert capsys.readouterr().err == "dev.py demo: the demo ended with exit code 2; what it said is above\n"


def test_the_demo_says_where_its_pictures_are(dev, steps, monkeypatch, capsys, tmp_path):
    def write_report(*command, **options):
        assert command[-3:] == ("--out", str(tmp_path / "here"), "--set=7.steps=5")
        (tmp_path / "here").mkdir()
        report = {"images": ["images/before_after.png"]}
        (tmp_path / "here" / "report.json").write_text(json.dumps(report))
        return 0

    monkeypatch.setattr(dev, "run", write_report)
    assert dev.main(["demo", "--out", str(tmp_path / "here"), "--set=7.steps=5"]) == 0
    assert str(tmp_path / "here" / "images" / "before_after.png") in capsys.readouterr().out


def test_settings_of_the_user_win(dev, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert dev.environment()["OMP_NUM_THREADS"] == "4"
    assert dev.environment()["HF_HUB_OFFLINE"] == "1"


@pytest.mark.skipif(os.name == "nt", reason="sends a POSIX signal")
def test_ctrl_c_waits_for_the_child_to_save(dev, tmp_path):
    child = textwrap.dedent(
        """
        import signal, sys, time
        try:
            print("training", flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            time.sleep(0.3)
            print("saved", flush=True)
            sys.exit(130)
        """
    )
    parent = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('dev', {str(ROOT / 'dev.py')!r})\n"
        "dev = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(dev)\n"
        f"sys.exit(dev.run(sys.executable, '-c', {child!r}))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "training\n"
    os.killpg(process.pid, 2)  # what a terminal does on Ctrl-C: SIGINT to the whole group
    assert process.communicate(timeout=20)[0] == "saved\n"
    assert process.returncode == 130
