"""Gather what tools/gpu_check.py needs on a machine without a network, in one folder that git ignores.

    python tools/gpu_prepare.py --comfyui DIR [--out .gpu] [--python 3.12] [--limit 64]

The folder gets wheels of what such a machine lacks (a PyTorch image has torch, transformers, peft and the like), a
trimmed ComfyUI as an archive, `run.sh`, which unpacks both there and starts the check, and the commit's name. The sizes
are printed, with those of the files that git tracks: all of it travels together, and may not be more than --limit MiB.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MIB = 1 << 20

# Beside what the machine's image holds. comfy-kitchen is the wheel without compiled kernels: the other is 58 MB.
# av, kornia and spandrel stay behind (48 MB): tests/host/stubs stands in for them while the host starts.
OURS = ("diffusers", "peft", "importlib_metadata")
HOSTS = (
    "alembic", "annotated-types", "blake3", "comfy-aimdo", "comfy-kitchen", "greenlet", "Mako", "pydantic",
    "pydantic_core", "pydantic-settings", "python-dotenv", "simpleeval", "SQLAlchemy", "torchsde", "trampoline",
    "typing-inspection",
)  # fmt: skip
PURE = ("comfy-kitchen",)
LEFT_OUT = (
    ".git", ".venv", "venv", "__pycache__", "blueprints", "comfy_api_nodes", "input", "models", "output", "temp",
    "tests", "tests-unit", "user", "script_examples",
)  # fmt: skip
"""Folders of the host that nothing here needs."""

RUN = """\
#!/bin/sh
# Unpack what tools/gpu_prepare.py gathered, and run the check: sh {folder}/run.sh OUT [arguments of gpu_check.py]
set -e
here=$(cd "$(dirname "$0")" && pwd)
place=${{ROLLOUT_PLACE:-/tmp/rollout-gpu}}
out=$1
shift
mkdir -p "$place"
tar -xJf "$here/comfyui.tar.xz" -C "$place"
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \\
  --target "$place/site" "$here"/wheels/*.whl
export PYTHONPATH="$place/site" COMFYUI_PATH="$place/ComfyUI" COMFYUI_PYTHON="$(command -v python3)"
export ROLLOUT_COMMIT="$(cat "$here/commit")"
exec python3 "$here/../tools/gpu_check.py" --out "$out" "$@"
"""


def pins(comfyui: Path) -> dict[str, str]:
    """Versions: of ours those of constraints.txt, of the host's those that its environment has or it asks for."""
    text = (ROOT / "constraints.txt").read_text() + (comfyui / "requirements.txt").read_text()
    found = dict(re.findall(r"^([\w.-]+)==([\w.]+)\s*$", text, re.MULTILINE))
    python = next(
        (p for p in (comfyui / ".venv/bin/python", comfyui / "venv/bin/python") if p.exists()), None
    )
    if python is not None:
        asked = [str(python), "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"]
        listed = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        found = dict(re.findall(r"^([\w.-]+)==([\w.]+)\s*$", listed, re.MULTILINE)) | found
    return {name.lower().replace("_", "-"): version for name, version in found.items()}


def platforms(python: str) -> list[str]:
    """What pip is told of the machine: x86-64 Linux with a recent C library."""
    names = [f"manylinux_2_{n}_x86_64" for n in (39, 36, 35, 34, 31, 28, 27, 26, 24, 17, 12)]
    told = ["--python-version", python, "--implementation", "cp", "--only-binary=:all:"]
    return told + [part for name in (*names, "manylinux2014_x86_64") for part in ("--platform", name)]


def gather_wheels(folder: Path, comfyui: Path, python: str) -> None:
    """Download the wheels, one by one: none may bring its own idea of torch.

    Raises:
        subprocess.CalledProcessError: pip found none.
    """
    known = pins(comfyui)
    for name in (*OURS, *HOSTS):
        version = known.get(name.lower().replace("_", "-"))
        wanted = f"{name}=={version}" if version else name
        where = ["--platform", "any", "--python-version", python, "--only-binary=:all:"]
        where = where if name in PURE else platforms(python)
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "-d",
            str(folder),
            *where,
            wanted,
        ]
        subprocess.run(command, check=True)


def kept(comfyui: Path) -> Iterator[Path]:
    """Files of the host that are carried."""
    for folder, folders, names in os.walk(comfyui):
        top = Path(folder) == comfyui
        folders[:] = sorted(
            f for f in folders if not (f == "__pycache__" or (top and f in LEFT_OUT) or f == ".git")
        )
        yield from (Path(folder) / name for name in sorted(names) if not name.endswith(".pyc"))


def archive(comfyui: Path, file: Path) -> None:
    """Pack the host as ``ComfyUI/``, with the empty folders that it expects."""
    with tarfile.open(file, "w:xz", preset=6) as tar:
        for path in kept(comfyui):
            tar.add(path, f"ComfyUI/{path.relative_to(comfyui).as_posix()}", recursive=False)
        for name in ("input", "models", "output", "temp", "user"):
            empty = tarfile.TarInfo(f"ComfyUI/{name}")
            empty.type, empty.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(empty)


def git(*arguments: str) -> str:
    """What git says."""
    run = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    return run.stdout


def sizes(folder: Path) -> dict[str, int]:
    """Bytes by what travels."""
    names = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    tracked = sum((ROOT / name).lstat().st_size for name in names if name and (ROOT / name).exists())
    parts = {path.name: path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    return {"the working tree": tracked, **parts}


def main() -> None:
    """Gather, and say what it weighs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--comfyui", type=Path, required=True, help="the ComfyUI that is carried")
    parser.add_argument("--out", type=Path, default=ROOT / ".gpu")
    parser.add_argument("--python", default="3.12", help="version of Python there")
    parser.add_argument("--limit", type=float, default=64, help="MiB that may travel")
    options = parser.parse_args()
    folder, comfyui = options.out.resolve(), options.comfyui.expanduser().resolve()
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "wheels").mkdir(parents=True)
    gather_wheels(folder / "wheels", comfyui, options.python)
    archive(comfyui, folder / "comfyui.tar.xz")
    (folder / "commit").write_text(git("describe", "--always", "--dirty").strip())
    (folder / "run.sh").write_text(RUN.format(folder=folder.name))
    weighed = sizes(folder)
    for name, size in sorted(weighed.items(), key=lambda item: -item[1]):
        print(f"{size / MIB:8.2f} MiB  {name}")
    total = sum(weighed.values()) / MIB
    print(f"{total:8.2f} MiB  in all, of {options.limit:g}")
    if total > options.limit:
        raise SystemExit(f"what travels must be at most {options.limit:g} MiB, got {total:.1f}")


if __name__ == "__main__":
    main()
