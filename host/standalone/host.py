"""The host for a terminal: folders below one output folder, a progress bar, Ctrl-C as the cancel button."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from threading import Event, Thread
from types import FrameType
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ..interface import Ask, Cancelled, Ending, MakeFacts, PanelKeeper, Progress, Runs
from ..paths import PACK, first_existing
from ..report import merge
from ..terminal import TerminalBar

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
"""What asks a run to stop."""
PATIENCE = 5.0
"""Seconds that a process has to end by itself after a second signal."""


class StandaloneHost:
    """A `Host` whose results all go below `out`.

    Args:
        out: Output folder; made when something is first written.
        folder: The folder of the graph; relative paths are looked for there too.
        device: A torch device, or None for the best one here.
        quiet: Draw no progress bars.
    """

    name = "standalone"

    def __init__(
        self,
        out: Path | str = "out",
        folder: Path | str = ".",
        device: str | None = None,
        quiet: bool = False,
    ) -> None:
        self.out = Path(out).expanduser().absolute()
        self.folder = Path(folder).absolute()
        self.quiet = quiet
        self.title = ""
        """What the progress bars of the running node are called."""
        self.sections: dict[str, Any] = {}
        """What nodes reported so far."""
        self.images: list[str] = []
        """Pictures saved so far, relative to `out`."""
        self._device = device
        self._cancelled = False

    def output_dir(self) -> Path:
        """The output folder."""
        return self.out

    def input_dir(self) -> Path:
        """The folder of the graph."""
        return self.folder

    def loras_dir(self) -> Path:
        """`out/loras`."""
        return self.out / "loras"

    def runs_dir(self) -> Path:
        """`out/runs`."""
        return self.out / "runs"

    def cache_dir(self) -> Path:
        """`out/cache`."""
        return self.out / "cache"

    def resolve_path(self, text: str) -> Path:
        """Look for `text` in the working directory, beside the graph, in the output folder, in the pack."""
        return first_existing(text, [Path.cwd(), self.folder, self.out, PACK])

    def linked_text(self, name: str) -> str | None:
        """None: every run is new here, so nothing is asked for its fingerprint."""
        return None

    def device(self) -> torch.device:
        """The device given, else CUDA, MPS or the CPU, the first there is."""
        return torch.device(self._device or best_device())

    def progress(self, total: int, run: PanelKeeper | None = None) -> Progress:
        """Start a bar on the terminal, named after the running node."""
        return _TerminalProgress(self, total)

    def cancel(self) -> None:
        """Ask the running node to stop at its next step boundary."""
        self._cancelled = True

    def cancel_requested(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled

    def check_cancelled(self) -> None:
        """Raise `Cancelled` if `cancel` was called."""
        if self._cancelled:
            raise Cancelled

    def save_images(self, images: Tensor, prefix: str, node: type | None = None) -> list[dict[str, str]]:
        """Write `<prefix>_00001_.png` and so on below `out`, numbered after the files that are there.

        Raises:
            ValueError: if `images` is not `[N, H, W, 1 | 3 | 4]` or `prefix` leaves the output folder.
        """
        if images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
            raise ValueError(f"images must be [N, H, W, 1 | 3 | 4], got {list(images.shape)}")
        target = (self.out / prefix).absolute()
        inside = Path(os.path.normpath(target))
        if inside == self.out or not inside.is_relative_to(self.out):
            raise ValueError(f"filename_prefix must stay in the output folder, got {prefix!r}")
        target.parent.mkdir(parents=True, exist_ok=True)
        first, metadata = _next_number(target), _png_metadata(node)
        saved = []
        for i, image in enumerate(images):
            path = target.with_name(f"{target.name}_{first + i:05}_.png")
            _to_pil(image).save(path, pnginfo=metadata, compress_level=4)
            relative = path.relative_to(self.out)
            self.images.append(relative.as_posix())
            subfolder = relative.parent.as_posix() if relative.parent.name else ""
            saved.append({"filename": path.name, "subfolder": subfolder, "type": "output"})
        return saved

    def report(self, section: Mapping[str, Any]) -> None:
        """Collect `section` for `report.json`."""
        merge(self.sections, section)


class _TerminalProgress:
    """A bar that listens to the host's cancel request."""

    def __init__(self, host: StandaloneHost, total: int) -> None:
        self._host = host
        self._bar = TerminalBar(total, host.title, host.quiet)

    def update(
        self, done: int, text: str = "", image: Image.Image | None = None, facts: MakeFacts | None = None
    ) -> None:
        self._bar.show(done, text)
        if self._host.cancel_requested():
            self._bar.close()
            raise Cancelled

    def asked(self) -> frozenset[Ask]:
        return frozenset()

    def end(self, facts: MakeFacts, state: Ending, error: str = "") -> None:
        self._bar.close()


_current: StandaloneHost | None = None


def serve(runs: Runs) -> None:
    """There is no front end to show them."""


def current() -> StandaloneHost:
    """The host that runs now; outside a run, a new one that writes to `./out`."""
    return _current or StandaloneHost()


@contextmanager
def installed(host: StandaloneHost) -> Iterator[StandaloneHost]:
    """Make `host` the current one for the duration."""
    global _current
    previous, _current = _current, host
    try:
        yield host
    finally:
        _current = previous


@contextmanager
def interruptible(host: StandaloneHost, patient: bool = False) -> Iterator[None]:
    """Turn the first Ctrl-C, SIGTERM or SIGHUP (a terminal that is closed) into `host.cancel()`.

    A second one stops at once, by KeyboardInterrupt; if that is not answered either, as in a call that hangs, the
    process ends some seconds later all the same: what was saved is complete at any moment.

    Args:
        patient: a second one does nothing: a launcher passes on what the terminal has sent already, and ends by itself
            what does not stop.
    """

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if number == getattr(signal, "SIGHUP", None):
            _forget_the_terminal()
        if host.cancel_requested():
            if patient:
                return
            raise KeyboardInterrupt
        host.cancel()

    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    previous = {number: signal.signal(number, on_interrupt) for number in numbers}
    with nullcontext() if patient else _always_ended(numbers):
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


@contextmanager
def _always_ended(numbers: Sequence[int]) -> Iterator[None]:
    """Inside, a second signal ends the process though Python never gets to run its handler."""
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    stop = _watched(reading, numbers)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        with suppress(OSError):
            writing.send(b"\0")
        writing.close()
        stop()


def _watched(reading: socket.socket, numbers: Sequence[int]) -> Callable[[], None]:
    """Let another process watch, or a thread where there can be none; how to end that."""
    there = (Path(__file__).parent / "watcher.py").is_file()  # the registry's archive has none
    if os.name == "posix" and there:
        from .watcher import watched_by_process

        with suppress(OSError):
            return watched_by_process(reading, numbers, 2 * PATIENCE)
    return _watched_by_thread(reading, numbers)


def _watched_by_thread(reading: socket.socket, numbers: Sequence[int]) -> Callable[[], None]:
    """Let a thread watch, which sees all but calls that hold Python's lock; how to end it."""
    answered = Event()

    def watch() -> None:
        told = 0
        with suppress(OSError):
            while got := reading.recv(1):
                told += got[0] in numbers
                if told > 1 and not answered.wait(2 * PATIENCE):
                    os._exit(130)

    def stop() -> None:
        answered.set()
        with suppress(OSError):
            reading.shutdown(socket.SHUT_RDWR)
        reading.close()

    Thread(target=watch, daemon=True).start()
    return stop


def _forget_the_terminal() -> None:
    """The terminal is gone: writing to it would fail, and a message must not cost the state that is saved next."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            if stream.isatty():
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def best_device() -> str:
    """`cuda`, `mps` or `cpu`: the first one that this machine has."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _to_pil(image: Tensor) -> Image.Image:
    """Convert `[H, W, C]` in [0, 1] to a picture; truncated like ComfyUI does, so that both hosts agree."""
    pixels = (image.detach().float().cpu() * 255).clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.squeeze(-1).numpy())


def _next_number(target: Path) -> int:
    """One more than the highest number among `<target>_<number>_.png`."""
    pattern = re.compile(re.escape(target.name) + r"_(\d+)_?\.png")
    numbers = [int(match[1]) for file in target.parent.iterdir() if (match := pattern.fullmatch(file.name))]
    return max(numbers, default=0) + 1


def _png_metadata(node: type | None) -> PngInfo | None:
    """The text chunks that ComfyUI writes, so that a saved picture can be opened as a workflow."""
    hidden = getattr(node, "hidden", None)
    if hidden is None or hidden.prompt is None:
        return None
    metadata = PngInfo()
    for key, value in {"prompt": hidden.prompt, **(hidden.extra_pnginfo or {})}.items():
        metadata.add_text(key, json.dumps(value))
    return metadata
