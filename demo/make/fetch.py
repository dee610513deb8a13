"""Fetch the pinned picture packages with npm and unpack them."""

import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path

# package -> (version, sha256 of the archive npm writes)
PACKAGES = {
    "@iconify-json/noto": ("1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"),
    "@iconify-json/fluent-emoji-flat": (
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    ),
    "@iconify-json/fluent-emoji": (
        "1.2.7",
        "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
    ),
    "@iconify-json/twemoji": ("1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7"),
    "@iconify-json/fxemoji": ("1.2.2", "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef"),
    "@iconify-json/noto-v1": ("1.2.5", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37"),
    "unicode-emoji-json": ("0.9.0", "ae7efacb55533385bf8767d613dbd36c71226669759d95919a6e9059f5e4c401"),
}


def fetch(work: Path) -> Path:
    """Put every package under `work/npm/<name>` and return that folder; what is there already is kept.

    Raises RuntimeError when npm is missing or fails, or when an archive is not the pinned one.
    """
    folder = work / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    for package, (version, sha256) in PACKAGES.items():
        target = folder / package.rpartition("/")[2]
        if not target.exists():
            unpack(download(package, version, sha256, folder), target)
    return folder


def download(package: str, version: str, sha256: str, folder: Path) -> Path:
    """Let npm write the package's archive into `folder`, check its sha256 and return its path."""
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError("npm must be on the PATH, got none; install Node.js")
    command = [npm, "pack", "--silent", "--pack-destination", str(folder), f"{package}@{version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"npm pack must succeed, got exit code {done.returncode}: {done.stderr.strip()}")
    archive = folder / done.stdout.split()[-1]
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sha256:
        raise RuntimeError(f"{archive.name} must have sha256 {sha256}, got {found}; delete it and retry")
    return archive


def unpack(archive: Path, target: Path) -> None:
    """Unpack an npm archive, whose only folder is `package/`, as `target`."""
    staging = target.with_suffix(".partial")
    with tarfile.open(archive) as tar:
        tar.extractall(staging, filter="data")
    (staging / "package").rename(target)
    staging.rmdir()
    archive.unlink()
