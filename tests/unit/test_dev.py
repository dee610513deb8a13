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
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look there
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    for name in module.INSTALLED_FROM:
        (tmp_path / name).write_text(name)
    return module


def set_up(dev, torch_spec=None):
    """Set `.venv` up as main does and return it."""
    dev.set_up(dev.usual_venv(), torch_spec)
    return dev.usual_venv()


@pytest.fixture
def steps(dev, monkeypatch):
    """Record the steps of a set-up instead of running them."""
    taken = []

    def record(venv, title, command):
        taken.append(command)
        venv.python.parent.mkdir(parents=True, exist_ok=True)
        venv.python.touch()

    monkeypatch.setattr(dev, "step", record)
    monkeypatch.setattr(dev, "runs", lambda *command: True)
    return taken


def test_second_set_up_does_nothing(dev, steps):
    set_up(dev)
    assert len(steps) == 4  # .venv, torch, the packages, the checkout
    set_up(dev)
    assert len(steps) == 4


@pytest.mark.parametrize("name", ["pyproject.toml", "requirements-dev.txt", "constraints.txt"])
def test_a_changed_requirement_is_installed(dev, steps, name):
    set_up(dev)
    (dev.ROOT / name).write_text("changed")
    set_up(dev)
    assert len(steps) == 7  # the .venv is kept


def test_another_python_makes_venv_anew(dev, steps):
    set_up(dev)
    stamp = dev.usual_venv().stamp
    stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "python": "3.9"}))
    set_up(dev)
    assert steps[4][1:3] == ["-m", "venv"]


def test_a_venv_of_someone_else_is_left_alone(dev, steps):
    theirs = dev.usual_venv().folder / "lib"
    theirs.mkdir(parents=True)
    with pytest.raises(dev.DevError, match="was not made by dev"):
        set_up(dev)
    assert theirs.is_dir()


def test_torch_spec_is_split_for_pip_and_remembered(dev, steps):
    set_up(dev, "torch==2.8.0 --index-url https://example.org/cpu")
    assert steps[1][-3:] == ["torch==2.8.0", "--index-url", "https://example.org/cpu"]
    set_up(dev)
    assert len(steps) == 4
    set_up(dev, "torch==2.9.0")
    assert steps[4][-1] == "torch==2.9.0"


def test_an_interrupted_set_up_is_not_taken_for_a_finished_one(dev, steps, monkeypatch):
    set_up(dev)
    monkeypatch.setattr(dev, "install", lambda *arguments: (_ for _ in ()).throw(dev.DevError("no network")))
    with pytest.raises(dev.DevError):
        set_up(dev, "torch==2.9.0")
    assert dev.read_stamp(dev.usual_venv()) == {}


def test_a_failing_step_shows_the_end_of_its_output_and_keeps_all_of_it(dev, capsys):
    venv = dev.usual_venv()
    venv.folder.mkdir()
    script = "for i in range(100): print('line', i)\nraise SystemExit(3)"
    with pytest.raises(dev.DevError, match="installing x failed with exit code 3") as caught:
        dev.step(venv, "installing x", [sys.executable, "-c", script])
    assert caught.value.code == 1
    shown = capsys.readouterr().err.splitlines()
    assert shown == [f"line {i}" for i in range(100 - dev.TAIL_LINES, 100)]
    assert "line 0\n" in venv.log.read_text()


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
        "sys.modules['dev'] = dev\n"
        "spec.loader.exec_module(dev)\n"
        f"sys.exit(dev.run(sys.executable, '-c', {child!r}))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "training\n"
    os.killpg(process.pid, 2)  # what a terminal does on Ctrl-C: SIGINT to the whole group
    assert process.communicate(timeout=90)[0] == "saved\n"
    assert process.returncode == 130


# -- the lowest versions ---------------------------------------------------------------------------


@pytest.fixture
def lowest(dev, monkeypatch):
    """Describe the environment of the lowest versions of a small pyproject.toml."""
    monkeypatch.setattr(dev.sys, "version_info", (3, 11, 7))
    (dev.ROOT / "pyproject.toml").write_text(
        '[project]\nrequires-python = ">=3.10"\ndependencies = [\n    "numpy>=1.25",\n    "torch>=2.5",\n]\n\n'
        '[tool.comfy]\nrequires-comfyui = ">=0.3.64"\n'
    )
    (dev.ROOT / "requirements-dev.txt").write_text(
        "# tools\n-r requirements.txt\nmypy\nsetuptools>=77\ntorchao\n"
    )
    (dev.ROOT / "constraints.txt").write_text(
        "# pins\nmypy==2.4.1\nnumpy==2.4.6\nsetuptools==84.2\nsix==1.0\ntorchao==0.18.0\n"
    )
    return dev.lowest_venv()


def test_the_lowest_versions_are_those_of_pyproject_and_the_tools_stay_pinned(lowest):
    assert lowest.torch == "torch==2.5"
    assert lowest.constraints.splitlines() == ["numpy==1.25", "mypy==2.4.1", "setuptools==84.2"]


def test_every_dependency_has_a_lowest_version(dev):
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = dev.lowest_versions(text)
    assert len(found) == text.partition("\ndependencies = [")[2].partition("\n]")[0].count('"') // 2
    assert {"torch", "numpy", "diffusers"} <= found.keys()


def test_the_lowest_versions_have_a_venv_of_their_own(dev, lowest, steps, monkeypatch):
    ran = []
    monkeypatch.setattr(dev, "run", lambda *command, **options: ran.append(command) or 0)
    assert dev.main(["test", "--lowest", "-x"]) == 0
    assert steps[1][-1] == "torch==2.5"
    assert (lowest.folder / "constraints.txt").read_text() == lowest.constraints
    assert [Path(part).name for part in (ran[0][0], *ran[0][-2:])] == ["pytest", "unit", "-x"]
    assert ".venv-lowest" in ran[0][0]
    assert not dev.usual_venv().folder.exists()


def test_what_the_lowest_versions_cannot_bear_is_not_installed_beside_them(dev, lowest, steps):
    dev.set_up(lowest, None)
    (file,) = [command[-1] for command in steps if command[-1].endswith("requirements-dev.txt")]
    assert Path(file).read_text().splitlines() == [
        "# tools", f"-r {dev.ROOT.as_posix()}/requirements.txt", "mypy", "setuptools>=77"
    ]  # fmt: skip
    assert dev.required(dev.usual_venv()) == "requirements-dev.txt"


def test_another_torch_is_not_remembered_for_the_lowest_versions(dev, lowest, steps):
    dev.set_up(lowest, "torch==2.13.0")
    dev.set_up(lowest, None)
    assert [command[-1] for command in steps if command[-1].startswith("torch")] == [
        "torch==2.13.0",
        "torch==2.5",
    ]


@pytest.mark.parametrize(
    ("processors", "beside"),
    [(1, []), (2, ["-n", "2", "--dist", "loadfile"]), (64, ["-n", "4", "--dist", "loadfile"])],
)
def test_unit_tests_run_side_by_side_and_those_in_a_host_do_not(dev, monkeypatch, processors, beside):
    monkeypatch.setattr(dev.os, "cpu_count", lambda: processors)
    assert dev.parts(["-k", "x"]) == [
        [*beside, "tests/unit", "tests/demo", "-k", "x"],
        ["tests/host", "tests/browser", "-k", "x"],
    ]
    assert dev.unit_tests(["-k", "x"]) == [*beside, "tests/unit", "-k", "x"]


def test_named_tests_replace_the_others(dev):
    (dev.ROOT / "tests").mkdir()
    (dev.ROOT / "tests" / "test_a.py").touch()
    assert dev.parts(["tests/test_a.py::test_b"]) == [["tests/test_a.py::test_b"]]
    assert dev.unit_tests(["tests/test_a.py::test_b"]) == ["tests/test_a.py::test_b"]


@pytest.mark.parametrize(
    ("codes", "code"),
    [([0, 0], 0), ([1, 0], 1), ([0, 1], 1), ([0, 5], 0), ([5, 0], 0), ([5, 5], 5), ([5, 1], 1), ([5], 5)],
)
def test_a_part_without_tests_is_no_failure_where_another_has_some(dev, monkeypatch, codes, code):
    left = iter(codes)
    monkeypatch.setattr(dev, "run", lambda *command: next(left))
    assert dev.tests(dev.usual_venv(), [["x"]] * len(codes)) == code


def test_the_lowest_versions_refuse_a_python_that_is_too_new(dev, lowest, monkeypatch):
    monkeypatch.setattr(dev.sys, "version_info", (3, 12, 0))
    with pytest.raises(dev.DevError, match=r"--lowest needs Python 3\.11 or older"):
        dev.lowest_venv()


# -- lint ------------------------------------------------------------------------------------------


@pytest.fixture
def linted(dev, steps, monkeypatch):
    """Run `dev.py lint` with the exit codes of its checks given; return its code and the checks that ran."""

    def lint(**codes):
        ran = []

        def run(*command, **options):
            names = [name for name in ("check", "--check", "mypy", "tsc") if name in command]
            ran.append(names[-1])
            return codes.get(names[-1].strip("-") if names[-1] != "--check" else "format", 0)

        monkeypatch.setattr(dev, "run", run)
        monkeypatch.setattr(dev, "registry", lambda venv: codes.get("registry", 0))
        return dev.main(["lint"]), ran

    return lint


@pytest.mark.parametrize("name", ["check", "format", "mypy", "tsc", "registry"])
def test_lint_runs_all_checks_and_fails_with_any(dev, linted, monkeypatch, name):
    monkeypatch.setattr(dev.shutil, "which", lambda command: command)
    assert linted() == (0, ["check", "--check", "mypy", "tsc"])
    assert linted(**{name: 1}) == (1, ["check", "--check", "mypy", "tsc"])


def test_lint_says_that_it_skipped_tsc_without_node(dev, linted, monkeypatch, capsys):
    monkeypatch.setattr(dev.shutil, "which", lambda command: None)
    assert linted() == (0, ["check", "--check", "mypy"])
    assert "tsc: skipped, npx of node is not found" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("code", "said", "result"),
    [
        (0, "\u2713 All validation checks passed successfully", 0),
        (0, "Warning: Invalid requires-comfyui format\nAll validation checks passed successfully", 1),
        (0, "Security warnings found:\n__init__.py:1:1: S102 Use of `exec` detected", 1),
        (1, "Error: project version is empty", 1),
    ],
)
def test_a_warning_of_the_registrys_checks_fails_the_lint(dev, monkeypatch, capsys, code, said, result):
    installed = []
    monkeypatch.setattr(dev, "install", lambda venv, title, *arguments: installed.append(arguments))
    commands = []

    def run(command, **options):
        commands.append((command, options["env"]))
        return dev.subprocess.CompletedProcess(command, code, stdout=said, stderr="")

    monkeypatch.setattr(dev.subprocess, "run", run)
    assert dev.registry(dev.Venv(dev.ROOT / ".venv", "torch", "")) == result
    assert installed[0][:2] == ("--no-deps", "--target")
    ((command, environment),) = commands
    assert command[1:] == ["-m", "comfy_cli", "--skip-prompt", "node", "validate"]
    assert environment["DO_NOT_TRACK"] == "1"  # nothing is sent anywhere
    assert ("no complaints" in capsys.readouterr().out) == (result == 0)
