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
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent
DEMO_OUT = ROOT / "out" / "demo"

OLDEST_PYTHON = (3, 10)
# The oldest Python that every version in constraints.txt has a release for.
PINNED_PYTHON = (3, 11)
# The newest Python that the lowest versions in pyproject.toml have releases for.
LOWEST_PYTHON = (3, 11)
# tsc over web/*.js; npx keeps it in npm's cache.
TYPESCRIPT = "typescript@7.0.2"
# `comfy node validate`: what ComfyUI's registry asks of a pack. It does without the 300 MB of the other packages that
# comfy-cli names.
COMFY_CLI = ("comfy-cli==1.23.0", "semver==3.0.4", "tomlkit==0.15.2")
DEFAULT_TORCH = "torch==2.13.0"
# Files whose change means that an existing .venv is out of date.
INSTALLED_FROM = ("pyproject.toml", "requirements.txt", "requirements-dev.txt", "constraints.txt")
TAIL_LINES = 12
# Processes of pytest: each takes about 1.5 GB.
MOST_WORKERS = 4
# Packages for tests that the lowest torch and peft cannot bear to have beside them.
NOT_LOWEST = frozenset({"torchao"})
# pytest's exit code where no test was found.
NONE_COLLECTED = 5

COMMANDS = {
    "demo": "train the demo LoRA, sample with it, and say where the results are",
    "test": "run every test that can run here: unit tests, then those that need a ComfyUI or a browser",
    "lint": "run ruff, mypy, the checks of ComfyUI's registry and, where node is found, tsc over the JavaScript",
    "setup": "only make .venv",
}
TORCH_HELP = (
    "what pip shall install as torch, one string of one or more pip arguments, remembered in .venv "
    f"(default: {DEFAULT_TORCH!r}; on Linux that is a CUDA build unless pip is set up for the CPU one, "
    "see CONTRIBUTING.md)"
)


LOWEST_HELP = (
    "unit tests alone, with the lowest versions that pyproject.toml names, in .venv-lowest; their torch is a CUDA "
    "build on Linux, 5 GB installed; --torch takes another"
)


@dataclass(frozen=True)
class Venv:
    """A virtual environment in the checkout and what pip puts into it."""

    folder: Path
    torch: str
    """pip's arguments for torch where the user names none."""
    constraints: str
    """What constrains pip: the text of a constraints file."""
    without: frozenset[str] = frozenset()
    """Packages of requirements-dev.txt that are left out."""

    @property
    def stamp(self) -> Path:
        """The file that a finished set-up leaves."""
        return self.folder / "rollout-trainer.json"

    @property
    def log(self) -> Path:
        """What pip said."""
        return self.folder / "setup.log"

    @property
    def python(self) -> Path:
        """The interpreter."""
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


class DevError(Exception):
    """Ends the command with one line for the user; `code` is the exit status."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit status."""
    args, extra = parse(sys.argv[1:] if argv is None else argv)
    try:
        lowest = getattr(args, "lowest", False)
        venv = lowest_venv() if lowest else usual_venv()
        set_up(venv, args.torch)
        if args.command == "demo":
            return demo(venv, args.out, extra)
        if args.command == "test":
            return tests(venv, [unit_tests(extra)] if lowest else parts(extra))
        return lint(venv, extra) if args.command == "lint" else 0
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
        if name == "test":
            command.add_argument("--lowest", action="store_true", help=LOWEST_HELP)
    args, extra = parser.parse_known_args(argv)
    if extra and args.command == "setup":
        parser.error(f"setup takes no further arguments, got {' '.join(extra)}")
    return args, extra


# -- setting up ------------------------------------------------------------------------------------


def usual_venv() -> Venv:
    """Describe `.venv`: the pinned packages, and the torch that it has where the user names none."""
    folder = ROOT / ".venv"
    # On an older Python pip chooses what fits.
    pinned = sys.version_info >= PINNED_PYTHON
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8") if pinned else ""
    venv = Venv(folder, DEFAULT_TORCH, constraints)
    return Venv(folder, read_stamp(venv).get("torch", DEFAULT_TORCH), constraints)


def lowest_venv() -> Venv:
    """Describe `.venv-lowest`: what pyproject.toml names in its lowest versions, the tools as pinned.

    Raises:
        DevError: this Python is too new for versions that old.
    """
    if sys.version_info[:2] > LOWEST_PYTHON:
        newest = ".".join(map(str, LOWEST_PYTHON))
        raise DevError(
            f"--lowest needs Python {newest} or older, got {platform.python_version()}: the lowest versions have no "
            "releases for newer ones; run it with another python"
        )
    lowest = lowest_versions((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    torch = f"torch=={lowest.pop('torch')}"
    tools = named((ROOT / "requirements-dev.txt").read_text(encoding="utf-8")) - NOT_LOWEST
    pins = [
        line
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if sys.version_info >= PINNED_PYTHON and named(line) & tools
    ]
    floors = [f"{name}=={version}" for name, version in lowest.items()]
    return Venv(ROOT / ".venv-lowest", torch, "\n".join([*floors, *pins]) + "\n", NOT_LOWEST)


def lowest_versions(pyproject: str) -> dict[str, str]:
    """Map each of the dependencies in the text of pyproject.toml to the lowest version that it allows."""
    # The standard library of Python 3.10 reads no TOML.
    dependencies = pyproject.partition("\ndependencies = [")[2].partition("\n]")[0]
    return dict(re.findall(r'"([\w-]+)>=([\w.]+)"', dependencies))


def named(requirements: str) -> set[str]:
    """Names of the packages in the text of a requirements file."""
    return set(re.findall(r"^[\w-]+", requirements, re.MULTILINE)) - {"-r"}


def required(venv: Venv) -> str:
    """The requirements file of `venv`: ours, or a copy in its folder without some of the packages."""
    if not venv.without:
        return "requirements-dev.txt"
    lines = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8").splitlines()
    kept = [line.replace("-r ", f"-r {ROOT.as_posix()}/") for line in lines if not named(line) & venv.without]
    file = venv.folder / "requirements-dev.txt"
    file.write_text("\n".join(kept) + "\n", encoding="utf-8")
    return str(file)


def set_up(venv: Venv, torch_spec: str | None) -> None:
    """Bring `venv` to the state that the requirement files describe; do nothing if it is there.

    Raises:
        DevError: Python is too old or incomplete, or pip failed.
    """
    check_python()
    found = read_stamp(venv)
    spec = torch_spec or venv.torch
    wanted = stamp(spec)
    if found == wanted and venv.python.exists():
        return
    start = time.monotonic()
    # Without a stamp an interrupted set-up starts again where pip's cache and the folder allow it.
    venv.stamp.unlink(missing_ok=True)
    same_python = all(found.get(key) == wanted[key] for key in ("python", "root"))
    make_venv(venv, clear=bool(found) and not same_python)
    constraints = venv.folder / "constraints.txt"
    constraints.write_text(venv.constraints, encoding="utf-8")
    install(venv, f"installing {spec}", *spec.split())
    install(venv, "installing the packages", "-r", required(venv))
    # Editable: whatever the folder is called, it imports as rollout_trainer.
    install(venv, "linking the checkout", "--no-deps", "--no-build-isolation", "-e", ".")
    venv.stamp.write_text(json.dumps(wanted, indent=1), encoding="utf-8")
    print(f"set-up took {time.monotonic() - start:.0f} s; it is kept in {venv.folder.name}", flush=True)


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


def read_stamp(venv: Venv) -> dict[str, str]:
    """Return the stamp that the last finished set-up left, {} if there is none."""
    try:
        found = json.loads(venv.stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def make_venv(venv: Venv, clear: bool) -> None:
    """Create the folder of `venv`, anew if `clear` or if what is there does not run.

    Raises:
        DevError: it is not ours to remove, or this Python lives in it.
    """
    if venv.folder.exists():
        if not venv.log.exists():
            raise DevError(f"{venv.folder} was not made by dev.py; move it away")
        if not clear and runs(venv.python, "-m", "pip", "--version"):
            return
        if Path(sys.prefix).resolve() == venv.folder.resolve():
            raise DevError(f"{venv.folder.name} must be made anew; run dev.py with a Python outside it")
        shutil.rmtree(venv.folder)
    venv.folder.mkdir()
    venv.log.touch()
    step(venv, f"making {venv.folder.name}", [sys.executable, "-m", "venv", str(venv.folder)])


def runs(*command: object) -> bool:
    """Return whether a command starts and exits with 0."""
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0


def install(venv: Venv, title: str, *arguments: str) -> None:
    """`pip install` into `venv`, within its constraints."""
    pip = [str(venv.python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    step(venv, title, [*pip, "-c", str(venv.folder / "constraints.txt"), *arguments])


def step(venv: Venv, title: str, command: list[str]) -> None:
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
    with venv.log.open("a", encoding="utf-8") as log:
        log.write(f"$ {' '.join(command)}\n{output}\n")
    if process.returncode != 0:
        print(f"{again} failed", flush=True)
        print("\n".join(output.splitlines()[-TAIL_LINES:]), file=sys.stderr)
        raise DevError(f"{title} failed with exit code {process.returncode}; the whole log is in {venv.log}")
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


def demo(venv: Venv, out: Path, extra: list[str]) -> int:
    """Run the quickstart workflow with the standalone host and say where the pictures are.

    Where the LoRA and the report are, the run says itself.
    """
    out = out.resolve()
    workflow = "workflows/quickstart.json"
    code = run_in(venv, "-m", "rollout_trainer", "run", workflow, "--out", str(out), *extra)
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


def tests(venv: Venv, runs: Sequence[list[str]]) -> int:
    """Run pytest once for each list of arguments and return the first exit code that is no success."""
    # `pytest`, not `python -m pytest`, which would put the checkout on sys.path and hide the host's `nodes`.
    pytest = venv.python.with_name("pytest.exe" if os.name == "nt" else "pytest")
    codes = [run(str(pytest), *arguments) for arguments in runs]
    if len(codes) > 1 and any(code != NONE_COLLECTED for code in codes):
        codes = [code for code in codes if code != NONE_COLLECTED]  # of `-k x`, one part may have no test
    return next((code for code in codes if code), 0)


def parts(extra: list[str]) -> list[list[str]]:
    """Return pytest's arguments run by run: the unit tests side by side, then those that need a ComfyUI or a browser.

    Tests that the user names are one run, as they are.
    """
    if named_tests(extra):
        return [extra]
    return [[*side_by_side(), "tests/unit", "tests/demo", *extra], ["tests/host", "tests/browser", *extra]]


def side_by_side() -> list[str]:
    """Return what makes pytest run as many tests at once as there are processors, within reason."""
    workers = min(os.cpu_count() or 1, MOST_WORKERS)
    # A file's tests stay together: they share what its fixtures made.
    return ["-n", str(workers), "--dist", "loadfile"] if workers > 1 else []


def named_tests(extra: list[str]) -> bool:
    """Whether arguments for pytest name files or folders of tests."""
    return any((ROOT / argument.partition("::")[0]).exists() for argument in extra)


def unit_tests(extra: list[str]) -> list[str]:
    """Return pytest's arguments for the unit tests, or for those that the user names."""
    return extra if named_tests(extra) else [*side_by_side(), "tests/unit", *extra]


def lint(venv: Venv, extra: list[str]) -> int:
    """Run ruff, mypy in strict mode, tsc and `comfy node validate`; return the worst of their exit codes."""
    check = run_in(venv, "-m", "ruff", "check", *(extra or ["."]))
    form = run_in(venv, "-m", "ruff", "format", "--check", *(extra or ["."]))
    return max(check, form, mypy(venv), tsc(), registry(venv))


def mypy(venv: Venv) -> int:
    """Run mypy over the pack and return its exit code."""
    link = venv.folder / "lint" / "rollout_trainer"
    link.parent.mkdir(exist_ok=True)
    try:
        if not link.is_symlink():
            link.symlink_to(ROOT, target_is_directory=True)
    except OSError as err:
        raise DevError(f"mypy needs a symbolic link to the checkout, and making it failed: {err}") from err
    config = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    return run_in(venv, "-m", "mypy", *config, "-p", "rollout_trainer", cwd=link.parent)


def tsc() -> int:
    """Check the types in web/*.js and return tsc's exit code; say so where node is not found."""
    npx = shutil.which("npx")
    if npx is None:
        print("tsc: skipped, npx of node is not found; the types in web/*.js are unchecked", flush=True)
        return 0
    code = run(npx, "--yes", "--package", TYPESCRIPT, "tsc", "-p", str(ROOT))
    print(f"tsc: {'no errors in web/*.js' if code == 0 else f'exit code {code}'}", flush=True)
    return code


def registry(venv: Venv) -> int:
    """Run `comfy node validate` and return 1 if it warns of anything: it exits with 0 then too."""
    folder = venv.folder / "lint" / COMFY_CLI[0]
    if not folder.exists():
        install(venv, "installing comfy-cli", "--no-deps", "--target", str(folder), *COMFY_CLI)
    home = str(folder / "home")  # where it keeps settings of its own
    own = {"PYTHONPATH": str(folder), "DO_NOT_TRACK": "1", "HOME": home, "USERPROFILE": home, "TERM": "dumb"}
    command = [str(venv.python), "-m", "comfy_cli", "--skip-prompt", "node", "validate"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment() | own,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    said = done.stdout + done.stderr
    if done.returncode == 0 and "validation checks passed" in said and "warning" not in said.lower():
        print("comfy node validate: no complaints", flush=True)
        return 0
    print(f"comfy node validate: exit code {done.returncode}\n{said}", flush=True)
    return 1


def run_in(venv: Venv, *arguments: str, cwd: Path | None = None) -> int:
    """Run the Python of `venv` and return its exit code."""
    return run(str(venv.python), *arguments, cwd=cwd)


def run(*command: str, cwd: Path | None = None) -> int:
    """Run a command with our settings for the environment, in the checkout, and return its exit code."""
    with subprocess.Popen(command, cwd=cwd or ROOT, env=environment()) as process:
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
        # torchao, which is here for tests alone, tells at every start what it lacks.
        "TORCHAO_FORCE_SKIP_LOADING_SO_FILES": "1",
        "TORCH_LOGS": "-torch.utils._pytree",
    }
    return {**defaults, **os.environ}


if __name__ == "__main__":
    sys.exit(main())
