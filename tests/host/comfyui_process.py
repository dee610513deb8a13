"""A real ComfyUI as a test fixture: found, started with this pack on a free port, used over HTTP, stopped.

Standard library only, so that nothing but the host itself decides whether a host test can run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from websocket_listener import Events, listen

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
STUBS = HERE / "stubs"
NODES_FOR_TESTS = HERE / "nodes_for_tests"
# Dots and dashes on purpose: the pack must load whatever its folder is called.
PACK_FOLDER = "rollout-trainer-1.0.x"
START_TIMEOUT = 180.0  # seconds; 8 to 12 on two free cores
HOW_TO = (
    "set COMFYUI_PATH to a ComfyUI folder, and COMFYUI_PYTHON to its interpreter if that is not in "
    "<folder>/venv or <folder>/.venv; it needs the packages of requirements.txt"
)

Prompt = dict[str, Any]
History = dict[str, Any]


class HostError(RuntimeError):
    """The host refused a request, failed to execute a graph, or stopped."""

    def __init__(self, message: str, answer: Any = None) -> None:
        super().__init__(message)
        self.answer = answer


# -- finding one -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Installation:
    """A ComfyUI folder and the interpreter that runs it."""

    folder: Path
    python: Path


def find_installation() -> Installation | None:
    """Return the ComfyUI to test with, None if there is none.

    Raises:
        HostError: COMFYUI_PATH or COMFYUI_PYTHON is set and names nothing that can be started.
    """
    named = os.environ.get("COMFYUI_PATH")
    if named:
        folder = Path(named).expanduser().resolve()
        python = interpreter(folder)
        if not (folder / "main.py").is_file() or python is None:
            raise HostError(f"COMFYUI_PATH must name a ComfyUI with an interpreter, got {named}; {HOW_TO}")
        return Installation(folder, python)
    places = [Path.home() / "ComfyUI", Path.home() / "comfy" / "ComfyUI"]
    if ROOT.parent.name == "custom_nodes":
        places.insert(0, ROOT.parent.parent)
    for folder in places:
        python = interpreter(folder)
        if (folder / "main.py").is_file() and python is not None:
            return Installation(folder, python)
    return None


def interpreter(folder: Path) -> Path | None:
    """Return the Python for the ComfyUI in `folder`: the one named by COMFYUI_PYTHON, or its own venv's."""
    named = os.environ.get("COMFYUI_PYTHON")
    if named:
        found = shutil.which(str(Path(named).expanduser()))
        if found is None:
            raise HostError(f"COMFYUI_PYTHON must name an interpreter, got {named}")
        return Path(found)
    tail = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    portable = folder.parent / "python_embeded" / "python.exe"
    places = [folder / "venv" / tail, folder / ".venv" / tail, portable]
    return next((python for python in places if python.is_file()), None)


def other_front_end() -> list[str]:
    """Arguments for the front end that COMFYUI_FRONT_END names, its `static` folder; none: the host's own."""
    named = os.environ.get("COMFYUI_FRONT_END")
    if not named:
        return []
    folder = Path(named).expanduser().resolve()
    if not (folder / "index.html").is_file():
        raise HostError(f"COMFYUI_FRONT_END must name a folder with an index.html, got {named}")
    return ["--front-end-root", str(folder)]


# -- running it ------------------------------------------------------------------------------------


@dataclass
class ComfyUI:
    """A running ComfyUI that has the pack loaded."""

    process: subprocess.Popen[bytes]
    port: int
    base: Path  # its models, input, output, user and custom_nodes folders
    log_file: Path
    pack_folder: str = PACK_FOLDER
    client_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def url(self) -> str:
        """Address of the server, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def log(self) -> str:
        """Everything that the host has printed, without colours."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self.log_file.read_text(encoding="utf-8", errors="replace"))

    def object_info(self) -> dict[str, Any]:
        """All node types that the host offers, by id."""
        info: dict[str, Any] = self.get_json("/object_info")
        return info

    def queue(self, prompt: Prompt, timeout: float = 120.0) -> History:
        """Execute a graph in API format and return its history entry.

        Raises:
            HostError: the host did not accept the graph, or a node failed; says what the host says.
        """
        entry = self.wait(self.submit(prompt), timeout)
        for name, message in entry["status"]["messages"]:
            if name in ("execution_error", "execution_interrupted"):
                what = message.get("exception_message", name)
                raise HostError(f"{message.get('node_type')}: {what}", message)
        return entry

    def submit(self, prompt: Prompt) -> str:
        """Queue a graph and return its id without waiting."""
        answer = self.post_json("/prompt", {"prompt": prompt, "client_id": self.client_id})
        return str(answer["prompt_id"])

    def wait(self, prompt_id: str, timeout: float = 120.0) -> History:
        """Return the history entry of a queued graph once it has ended, however it ended."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            history = self.get_json(f"/history/{prompt_id}")
            if prompt_id in history:
                entry: History = history[prompt_id]
                return entry
            if self.process.poll() is not None:
                raise HostError(f"the host stopped with exit code {self.process.returncode}:\n{self.tail()}")
            time.sleep(0.1)
        raise HostError(f"graph not executed after {timeout:.0f} s:\n{self.tail()}")

    def interrupt(self) -> None:
        """Cancel the graph that is being executed."""
        self.post_json("/interrupt", {})

    def clear(self, timeout: float = 120.0) -> None:
        """Empty the queue and cancel what is executed, so that a test that failed costs the next one nothing."""
        self.post_json("/queue", {"clear": True})
        deadline = time.monotonic() + timeout
        while any(self.get_json("/queue").values()):
            self.interrupt()
            if time.monotonic() > deadline:
                raise HostError(f"the queue is not empty after {timeout:g} s:\n{self.tail()}")
            time.sleep(0.5)

    def upload(self, image: Path, subfolder: str = "") -> str:
        """Upload a picture and return the name that LoadImage and the like take."""
        boundary = uuid.uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="'
        body = (
            f'{head}subfolder"\r\n\r\n{subfolder}\r\n{head}overwrite"\r\n\r\ntrue\r\n'
            f'{head}image"; filename="{image.name}"\r\nContent-Type: application/octet-stream\r\n\r\n'
        ).encode() + image.read_bytes()
        body += f"\r\n--{boundary}--\r\n".encode()
        kind = f"multipart/form-data; boundary={boundary}"
        answer = json.loads(self.request("/upload/image", body, {"Content-Type": kind}))
        return "/".join(filter(None, (answer["subfolder"], answer["name"])))

    def view(self, image: dict[str, str]) -> bytes:
        """Return the file behind an entry of a node's `images` output."""
        keys = ("filename", "subfolder", "type")
        return self.request("/view?" + urllib.parse.urlencode({key: image[key] for key in keys}))

    @contextmanager
    def events(self) -> Iterator[Events]:
        """Collect what the host sends to the client that queues graphs here: progress, previews, events."""
        with listen(self.port, f"/ws?clientId={self.client_id}") as events:
            yield events

    def get_json(self, path: str) -> Any:
        """GET a path and decode the answer."""
        return json.loads(self.request(path))

    def post_json(self, path: str, data: object) -> Any:
        """POST JSON and decode the answer, None if it is empty."""
        answer = self.request(path, json.dumps(data).encode(), {"Content-Type": "application/json"})
        return json.loads(answer) if answer else None

    def request(self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> bytes:
        """Send one request (POST if there is a body) and return the answer's body.

        Raises:
            HostError: the answer's status is an error; `answer` holds its JSON or text.
        """
        # No proxy of the environment stands between us and this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(self.url + path, body, headers or {})
        try:
            with opener.open(request, timeout=60) as reply:
                content: bytes = reply.read()
        except urllib.error.HTTPError as err:
            text = err.read().decode(errors="replace")
            try:
                answer = json.loads(text)
            except ValueError:
                answer = text
            raise HostError(f"{path}: {err.code} {text[:2000]}", answer) from err
        return content

    def tail(self, lines: int = 40) -> str:
        """Return the end of the log."""
        return "\n".join(self.log().splitlines()[-lines:])


@contextmanager
def running(
    installation: Installation,
    base: Path,
    arguments: Sequence[str] = (),
    others: Sequence[Path] = (),
    device: Sequence[str] = ("--cpu",),
) -> Iterator[ComfyUI]:
    """Start a ComfyUI with `base` as its base directory; stop it at the end.

    Args:
        arguments: more of its command line, such as ``--preview-method latent2rgb``.
        others: packs to load beside this one.
        device: what of the command line says where it computes; empty: on its GPU.

    Raises:
        HostError: it stopped or did not answer in time; the end of its log is in the message.
    """
    link_pack(ROOT, base / "custom_nodes" / PACK_FOLDER)
    for other in others:
        link_pack(other, base / "custom_nodes" / other.name)
    port = free_port()
    log_file = base / "comfyui.log"
    command = [
        str(installation.python), "main.py", *device, "--disable-api-nodes", "--disable-auto-launch",
        "--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(base),
        # By default the database lies in the installation, where a running host may hold it.
        "--database-url", "sqlite:///:memory:", *arguments,
    ]  # fmt: skip
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=installation.folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        host = ComfyUI(process, port, base, log_file)
        wait_until_ready(host)
        yield host
    finally:
        stop(process)


def link_pack(folder: Path, place: Path) -> None:
    """Put a pack to `place`, as a link where the system allows one, else as a copy."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        place.symlink_to(folder, target_is_directory=True)
    except OSError:
        shutil.copytree(folder, place, ignore=shutil.ignore_patterns(".*", "out", "runs", "build"))


def environment() -> dict[str, str]:
    """Return the variables that the host's process gets."""
    paths = [str(STUBS), os.environ.get("PYTHONPATH", "")]
    return {
        "OMP_NUM_THREADS": "1",
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
    }


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait_until_ready(host: ComfyUI) -> None:
    """Return once the host answers; its server only starts after all packs are loaded."""
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if host.process.poll() is not None:
            raise HostError(f"ComfyUI ended with exit code {host.process.returncode}:\n{host.tail()}")
        try:
            host.object_info()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise HostError(f"ComfyUI did not answer within {START_TIMEOUT:.0f} s:\n{host.tail()}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the process that we started, by force if it does not go by itself."""
    process.terminate()
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def comfyui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUI]:
    """Give a real ComfyUI with the pack, one for the whole session; skip where none is found.

    It shows previews, which are off by default, and has the nodes of `nodes_for_tests` too.
    """
    installation = find_installation()
    if installation is None:
        pytest.skip(f"no ComfyUI found: {HOW_TO}")
    print(f"host tests use {installation.folder}", file=sys.stderr)
    base = tmp_path_factory.mktemp("comfyui")
    arguments = ["--preview-method", "latent2rgb", *other_front_end()]
    with running(installation, base, arguments, [NODES_FOR_TESTS]) as host:
        yield host
