"""`--comfyui DIR`: runs a workflow in a ComfyUI installation, which has the nodes of other packs.

Starts it on a free port of this machine with this pack beside its own, queues the workflow over HTTP, waits, and
stops it. Nothing is written into the installation: results go to the output folder of the run, and what ComfyUI
keeps for itself (user settings, database, temporary pictures) to a folder that is deleted at the end.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

from .graph.catalog import NodeSpec, from_object_info
from .graph.normal import Graph, GraphError
from .interface import HostError
from .paths import PACK
from .report import FOLDERS_VARIABLE, REPORT_VARIABLE
from .standalone.host import StandaloneHost

PACK_LINK = "rollout_trainer"
"""What this pack's folder is called in there; ComfyUI names a node's module after it."""

START_SECONDS = 600
POLL_SECONDS = 0.3
PIECE_BYTES, TAIL_PIECES = 4096, 64
LAST_LINES = 40


@dataclass(frozen=True)
class Installation:
    """A ComfyUI folder and the interpreter that runs it."""

    folder: Path
    python: Path


def find_installation(folder: Path, python: Path | None = None) -> Installation:
    """The installation in `folder`, with `python` or the interpreter that lies there.

    Raises:
        GraphError: if there is no `main.py` or no interpreter.
    """
    folder = folder.expanduser().absolute()
    if not (folder / "main.py").is_file():
        raise GraphError(f"--comfyui must be a ComfyUI folder with a main.py, got {folder}")
    own = [folder / env / tail for env in ("venv", ".venv") for tail in ("bin/python", "Scripts/python.exe")]
    portable = folder.parent / "python_embeded" / "python.exe"
    candidates = [python.expanduser()] if python else [*own, portable]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        option = "--comfyui-python must be an interpreter" if python else "--comfyui must have a venv"
        raise GraphError(f"{option}, got {python or folder}; give --comfyui-python PATH")
    return Installation(folder, found)


@dataclass
class Server:
    """A running ComfyUI."""

    process: subprocess.Popen[bytes]
    port: int
    workspace: Path
    tail: deque[bytes] = field(default_factory=lambda: deque(maxlen=TAIL_PIECES))
    """The last pieces of its output."""
    shown: bool = False
    """Whether its output is passed on to stderr: progress bars, once the workflow runs."""

    def catalog(self) -> dict[str, NodeSpec]:
        """The nodes that it has.

        Raises:
            HostError: if this pack is not among them, with what it printed: a package is missing there.
        """
        info = self._json("/object_info")
        if not any(PACK_LINK in entry["python_module"] for entry in info.values()):
            raise HostError(f"ComfyUI could not load this pack; it printed:\n{self.last_words()}")
        return from_object_info(info)

    def run(self, graph: Graph, host: StandaloneHost, shown: bool = True) -> None:
        """Run `graph` to its end; pictures, texts and what our nodes reported are collected in `host`.

        Its progress bars are passed on if they are to be `shown`.

        A cancel of `host` is passed on, and then waited for, so that a trainer can save.

        Raises:
            GraphError: if ComfyUI refuses the workflow.
            HostError: if a node fails or ComfyUI stops.
        """
        prompt_id = self._submit(graph)
        self.shown, told = shown, False
        while not (history := self._history(prompt_id)):
            if host.cancel_requested() and not told:
                self.request("/interrupt", b"{}")
                told = True
            time.sleep(POLL_SECONDS)
        self._collect(history[prompt_id], graph, host)

    def _history(self, prompt_id: str) -> dict[str, Any]:
        """What became of a prompt; nothing yet while it runs.

        Raises:
            HostError: ComfyUI stopped.
        """
        try:
            history: dict[str, Any] = self._json(f"/history/{prompt_id}")
        except (OSError, HTTPException) as err:  # nobody answers any more, or not to the end
            try:
                code = self.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                raise err from None
            raise HostError(f"ComfyUI stopped with exit code {code} before the workflow ended") from err
        return history

    def _submit(self, graph: Graph) -> str:
        extra = {"extra_pnginfo": {"workflow": graph.workflow}} if graph.workflow else {}
        body = json.dumps({"prompt": graph.to_api(), "extra_data": extra}).encode()
        try:
            return str(json.loads(self.request("/prompt", body))["prompt_id"])
        except urllib.error.HTTPError as err:
            raise GraphError(*_refusals(json.loads(err.read() or b"{}"), graph)) from err

    def _collect(self, entry: Mapping[str, Any], graph: Graph, host: StandaloneHost) -> None:
        report = self.workspace / "report.json"
        if report.exists():
            host.report(json.loads(report.read_text(encoding="utf-8")))
        for id, shown in (entry.get("outputs") or {}).items():
            if shown.get("text"):
                label = graph.nodes[id].label if id in graph.nodes else f"node {id}"
                host.report({"texts": {label: "\n".join(map(str, shown["text"]))}})
            for picture in shown.get("images") or ():
                host.images.append(self._keep(picture, host.out))
        for event, data in entry["status"]["messages"]:
            if event == "execution_error":
                id, message = str(data["node_id"]), str(data["exception_message"]).strip()
                raise HostError(f"{graph.nodes[id].label if id in graph.nodes else f'node {id}'}: {message}")

    def _keep(self, picture: Mapping[str, str], out: Path) -> str:
        """The path of a picture below `out`; a temporary one is copied there first."""
        path = Path(picture.get("subfolder", ""), picture["filename"])
        if picture.get("type") == "temp":
            query = urllib.parse.urlencode({**picture})
            path = Path("preview") / path.name
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            (out / path).write_bytes(self.request(f"/view?{query}"))
        return path.as_posix()

    def _json(self, path: str) -> Any:
        return json.loads(self.request(path))

    def request(self, path: str, body: bytes | None = None) -> bytes:
        """Send one request (POST if there is a body) and return the answer.

        Raises:
            OSError: if there is none, or one that says no (`urllib.error.HTTPError`).
        """
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is on this machine
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body)
        with opener.open(request, timeout=60) as reply:
            content: bytes = reply.read()
        return content

    def forward(self) -> None:
        """Read its output until it ends; runs in a thread."""
        assert self.process.stdout is not None
        while piece := os.read(self.process.stdout.fileno(), PIECE_BYTES):
            self.tail.append(piece)
            if self.shown:
                sys.stderr.write(piece.decode(errors="replace"))
                sys.stderr.flush()

    def last_words(self) -> str:
        """The end of what it printed."""
        return "\n".join(b"".join(self.tail).decode(errors="replace").strip().splitlines()[-LAST_LINES:])


def _refusals(answer: Mapping[str, Any], graph: Graph) -> list[str]:
    """ComfyUI's own problems with a workflow, one line each."""
    lines = []
    for id, node in (answer.get("node_errors") or {}).items():
        label = graph.nodes[id].label if id in graph.nodes else f"node {id}"
        lines += [f"{label}: {error['message']}: {error['details']}" for error in node["errors"]]
    error = answer.get("error") or {}
    whole = error.get("message") if isinstance(error, dict) else error
    return [" ".join(line.split()) for line in lines] or [f"ComfyUI refuses the workflow: {whole}"]


@contextmanager
def started(installation: Installation, host: StandaloneHost, device: str | None) -> Iterator[Server]:
    """Start ComfyUI with this pack and with the output folder of `host`; stop it at the end.

    Raises:
        HostError: if it does not start.
        Cancelled: if the user stops while it starts.
    """
    existed = host.out.exists()
    with tempfile.TemporaryDirectory(prefix="rollout-trainer-", ignore_cleanup_errors=True) as folder:
        workspace = Path(folder)
        server = Server(_start(installation, host, device, workspace, port := _free_port()), port, workspace)
        reader = threading.Thread(target=server.forward, daemon=True)
        reader.start()
        try:
            _wait_until_ready(server, host)
            yield server
        finally:
            _stop(server.process)
            reader.join(timeout=5)
            if not existed:
                _remove_if_empty(host.out)


def _start(
    installation: Installation, host: StandaloneHost, device: str | None, workspace: Path, port: int
) -> subprocess.Popen[bytes]:
    (workspace / "user").mkdir()
    packs = workspace / "custom_nodes"
    packs.mkdir()
    _link(packs / PACK_LINK)
    config = workspace / "paths.yaml"
    config.write_text(json.dumps({"rollout_trainer": {"custom_nodes": str(packs)}}))  # JSON is YAML
    command = [
        *(str(installation.python), "main.py", "--listen", "127.0.0.1", "--port", str(port)),
        *("--output-directory", str(host.out), "--temp-directory", str(workspace)),
        *("--user-directory", str(workspace / "user"), "--database-url", "sqlite:///:memory:"),
        *("--extra-model-paths-config", str(config), "--disable-auto-launch", *_device_flags(device)),
    ]
    own = {
        REPORT_VARIABLE: str(workspace / "report.json"),
        FOLDERS_VARIABLE: os.pathsep.join([str(Path.cwd()), str(host.folder)]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if "--cuda-device" in command:
        own["LOCAL_RANK"] = "0"  # it sees that card alone
    # A process group of its own: Ctrl-C reaches us alone, and the trainer in there gets the time to save.
    group: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return subprocess.Popen(
        command,
        cwd=installation.folder,
        env={**os.environ, **own},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **group,
    )


def _link(place: Path) -> None:
    """Make this pack visible at `place`: a link, or a copy where the system allows no links."""
    try:
        place.symlink_to(PACK, target_is_directory=True)
    except OSError:
        shutil.copytree(
            PACK, place, ignore=shutil.ignore_patterns(".*", "out", "runs", "build", "__pycache__")
        )


def _device_flags(device: str | None) -> list[str]:
    if device is None:
        return []
    kind, _, index = device.partition(":")
    return ["--cpu"] if kind == "cpu" else ["--cuda-device", index] if index else []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait_until_ready(server: Server, host: StandaloneHost) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        host.check_cancelled()
        if server.process.poll() is not None:
            time.sleep(0.2)  # for its last words to arrive
            code, words = server.process.returncode, server.last_words()
            raise HostError(f"ComfyUI stopped with exit code {code} while it started; it printed:\n{words}")
        try:
            server.request("/system_stats")
        except OSError:
            time.sleep(POLL_SECONDS)
        else:
            return
    raise HostError(f"ComfyUI did not start within {START_SECONDS} s; it printed:\n{server.last_words()}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the process that we started, by force if it does not go by itself."""
    process.terminate()
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _remove_if_empty(folder: Path) -> None:
    """Remove a folder that ComfyUI made when it started, and its empty ones inside, if no result came."""
    if folder.is_dir() and not any(path.is_file() for path in folder.rglob("*")):
        shutil.rmtree(folder)
