"""Set up this checkout and run it: `python dev.py demo`, `test`, `lint` or `setup`.

Makes `.venv` beside this file, installs torch and the pinned packages there, and does what was asked.
Needs Python 3.10 or newer and pip, nothing else; works on Linux, macOS and Windows. A second start
finds the stamp of the first in `.venv` and goes straight to work. Arguments that it does not know are
passed on: `python dev.py test -k rollout`, `python dev.py demo --set 7.steps=50`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMP = VENV / "rollout-trainer.json"
LOG = VENV / "setup.log"
DEMO_OUT = ROOT / "out" / "demo"

OLDEST_PYTHON = (3, 10)
# The oldest Python that every version in constraints.txt has a release for.
PINNED_PYTHON = (3, 11)
DEFAULT_TORCH = "torch==2.13.0"
# Files whose change means that an existing .venv is out of date.
INSTALLED_FROM = ("pyproject.toml", "requirements.txt", "requirements-dev.txt", "constraints.txt")
TAIL_LINES = 12

COMMANDS = {
    "demo": "train the demo LoRA, sample with it, and say where the results are",
    "test": "run every test that can run here: unit tests, then those that need a ComfyUI or a browser",
    "lint": "run ruff and mypy",
    "setup": "only make .venv",
}
TORCH_HELP = (
    "what pip shall install as torch, one string of one or more pip arguments, remembered in .venv "
    f"(default: {DEFAULT_TORCH!r}; on Linux that is a CUDA build unless pip is set up for the CPU one, "
    "see CONTRIBUTING.md)"
)


class DevError(Exception):
    """Ends the command with one line for the user; `code` is the exit status."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit status."""
    args, extra = parse(sys.argv[1:] if argv is None else argv)
    try:
        set_up(args.torch)
        if args.command == "demo":
            return demo(args.out, extra)
        if args.command == "test":
            return test(extra)
        return lint(extra) if args.command == "lint" else 0
    except DevError as err:
        print(f"dev.py {args.command}: {err}", file=sys.stderr)
        return err.code
    except OSError as err:  # no space, no rights, a file of the checkout missing
        print(f"dev.py {args.command}: {err}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\ndev.py {args.command}: interrupted", file=sys.stderr)
        return 130


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split the command line into our arguments and those to pass on."""
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="dev.py", description=summary, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument("--torch", metavar="SPEC", help=TORCH_HELP)
        if name == "demo":
            command.add_argument("--out", type=Path, default=DEMO_OUT, metavar="DIR", help="where results go")
    args, extra = parser.parse_known_args(argv)
    if extra and args.command == "setup":
        parser.error(f"setup takes no further arguments, got {' '.join(extra)}")
    return args, extra


# -- setting up ------------------------------------------------------------------------------------


def set_up(torch_spec: str | None) -> None:
    """Bring `.venv` to the state that the requirement files describe; do nothing if it is there.

    Raises:
        DevError: Python is too old or incomplete, or pip failed.
    """
    check_python()
    found = read_stamp()
    spec = torch_spec or found.get("torch") or DEFAULT_TORCH
    wanted = stamp(spec)
    if found == wanted and venv_python().exists():
        return
    start = time.monotonic()
    # Without a stamp an interrupted set-up starts again where pip's cache and .venv allow it.
    STAMP.unlink(missing_ok=True)
    same_python = all(found.get(key) == wanted[key] for key in ("python", "root"))
    make_venv(clear=bool(found) and not same_python)
    install(f"installing {spec}", *spec.split())
    install("installing the pinned packages", "-r", "requirements-dev.txt")
    # Editable: whatever the folder is called, it imports as rollout_trainer.
    install("linking the checkout", "--no-deps", "--no-build-isolation", "-e", ".")
    STAMP.write_text(json.dumps(wanted, indent=1), encoding="utf-8")
    print(f"set-up took {time.monotonic() - start:.0f} s; it is kept in {VENV.name}", flush=True)


def check_python() -> None:
    """Raise DevError unless this Python can make a virtual environment for the pack."""
    if sys.version_info < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        raise DevError(
            f"Python must be {oldest} or newer, got {platform.python_version()}; run it with another python"
        )
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            raise DevError(
                f"this Python has no module {module}; install it (on Debian and Ubuntu: "
                "apt install python3-venv)"
            )


def venv_python() -> Path:
    """Path of the interpreter in `.venv`."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def stamp(torch_spec: str) -> dict[str, str]:
    """Describe a finished set-up: equal stamps mean that there is nothing to install."""
    digest = hashlib.sha256()
    for name in INSTALLED_FROM:
        digest.update(name.encode() + b"\0" + (ROOT / name).read_bytes() + b"\0")
    return {
        "python": sys.version,
        "root": str(ROOT),
        "requirements": digest.hexdigest(),
        "torch": torch_spec,
    }


def read_stamp() -> dict[str, str]:
    """Return the stamp that the last finished set-up left, {} if there is none."""
    try:
        found = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def make_venv(clear: bool) -> None:
    """Create `.venv`, anew if `clear` or if what is there does not run.

    Raises:
        DevError: it is not ours to remove, or this Python lives in it.
    """
    if VENV.exists():
        if not LOG.exists():
            raise DevError(f"{VENV} was not made by dev.py; move it away")
        if not clear and runs(venv_python(), "-m", "pip", "--version"):
            return
        if Path(sys.prefix).resolve() == VENV.resolve():
            raise DevError(f"{VENV.name} must be made anew; run dev.py with a Python outside it")
        shutil.rmtree(VENV)
    VENV.mkdir()
    LOG.touch()
    step(f"making {VENV.name}", [sys.executable, "-m", "venv", str(VENV)])


def runs(*command: object) -> bool:
    """Return whether a command starts and exits with 0."""
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0


def install(title: str, *arguments: str) -> None:
    """`pip install` into `.venv`, within constraints.txt where this Python can have those versions."""
    pinned = ["-c", "constraints.txt"] if sys.version_info >= PINNED_PYTHON else []
    pip = [str(venv_python()), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    step(title, [*pip, *pinned, *arguments])


def step(title: str, command: list[str]) -> None:
    """Run one step of the set-up, its output kept in the log; show what it does and how long it took.

    Raises:
        DevError: the command failed; the end of its output has been printed.
    """
    start = time.monotonic()
    # Where there is no terminal (CI), each line is written once, from left to right.
    again = f"\r{title} ..." if sys.stdout.isatty() else ""
    print(f"{title} ...", end="", flush=True)
    # pip cannot obey a user's `--user` default inside a virtual environment.
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PIP_USER": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        try:
            output = wait(process, again, start)
        except KeyboardInterrupt:
            process.terminate()
            raise
    with LOG.open("a", encoding="utf-8") as log:
        log.write(f"$ {' '.join(command)}\n{output}\n")
    if process.returncode != 0:
        print(f"{again} failed", flush=True)
        print("\n".join(output.splitlines()[-TAIL_LINES:]), file=sys.stderr)
        raise DevError(f"{title} failed with exit code {process.returncode}; the whole log is in {LOG}")
    print(f"{again} {time.monotonic() - start:.0f} s", flush=True)


def wait(process: subprocess.Popen[str], again: str, start: float) -> str:
    """Return what `process` printed once it ends; if there is a line to write again, count the seconds."""
    while True:
        try:
            return process.communicate(timeout=1)[0]
        except subprocess.TimeoutExpired:
            if again:
                print(f"{again} {time.monotonic() - start:.0f} s", end="", flush=True)


# -- commands --------------------------------------------------------------------------------------


def demo(out: Path, extra: list[str]) -> int:
    """Run the quickstart workflow with the standalone host and say where the pictures are.

    Where the LoRA and the report are, the run says itself.
    """
    out = out.resolve()
    workflow = "workflows/quickstart.json"
    code = run_in_venv("-m", "rollout_trainer", "run", workflow, "--out", str(out), *extra)
    if code != 0:
        raise DevError(f"the demo ended with exit code {code}; what it said is above", code)
    print("Look at:", *pictures(out), sep="\n  ")
    return 0


def pictures(out: Path) -> list[Path]:
    """Return the pictures that the report of a run in `out` names."""
    try:
        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise DevError(f"the demo wrote no readable report: {err}") from err
    return [out / image for image in report["images"]]


def test(extra: list[str]) -> int:
    """Run the unit tests and, where a ComfyUI (and a browser) is found, the tests against it."""
    # `pytest`, not `python -m pytest`, which would put the checkout on sys.path and hide the host's `nodes`.
    pytest = venv_python().with_name("pytest.exe" if os.name == "nt" else "pytest")
    return run(str(pytest), *extra)


def lint(extra: list[str]) -> int:
    """Run ruff, then mypy in strict mode; return the worse of the two exit codes."""
    ruff = run_in_venv("-m", "ruff", "check", *(extra or ["."]))
    link = VENV / "lint" / "rollout_trainer"
    link.parent.mkdir(exist_ok=True)
    try:
        if not link.is_symlink():
            link.symlink_to(ROOT, target_is_directory=True)
    except OSError as err:
        raise DevError(f"mypy needs a symbolic link to the checkout, and making it failed: {err}") from err
    config = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    mypy = run_in_venv("-m", "mypy", *config, "-p", "rollout_trainer", cwd=link.parent)
    return max(ruff, mypy)


def run_in_venv(*arguments: str, cwd: Path = ROOT) -> int:
    """Run the Python of `.venv` and return its exit code."""
    return run(str(venv_python()), *arguments, cwd=cwd)


def run(*command: str, cwd: Path = ROOT) -> int:
    """Run a command with our settings for the environment and return its exit code."""
    with subprocess.Popen(command, cwd=cwd, env=environment()) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                # The child got the same Ctrl-C and saves its work: wait for it to finish.
                continue


def environment() -> dict[str, str]:
    """Return the variables that a run gets: the user's, with our defaults where they say nothing."""
    defaults = {
        # Demo and tests train models of a few million parameters. Threads gain little on such small matrices
        # and wait for each other by spinning: with other work on two cores, a training step with two
        # threads took 8 times as long as with one.
        "OMP_NUM_THREADS": "1",
        # Nothing is downloaded at run time; a library that tries to must fail, not hang.
        "HF_HUB_OFFLINE": "1",
        # Windows consoles: what we print is UTF-8.
        "PYTHONUTF8": "1",
    }
    return {**defaults, **os.environ}


if __name__ == "__main__":
    sys.exit(main())
