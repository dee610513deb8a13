"""A process that trains and is killed, for test_state.py: imports once, then forks a trainer for every line it reads.

A line is ``PATH [POINT N]``: train on in the run folder PATH until somebody kills the process; with POINT it kills
itself at its N-th call of that function. The answer is the process id and, on the next line, what it died of.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def register_package() -> None:
    """Make this checkout importable as rollout_trainer."""
    spec = importlib.util.spec_from_file_location(
        "rollout_trainer", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    sys.modules["rollout_trainer"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["rollout_trainer"])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(point: str, n: int) -> None:
    """Replace a function of the operating system, so that the n-th call of it ends this process."""
    owner, name = {
        "half": (Path, "open"),
        "fsync": (os, "fsync"),
        "replace": (Path, "replace"),
        "unlink": (Path, "unlink"),
    }[point]
    real, calls = getattr(owner, name), []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(point != "half" or "wb" in args)
        if not calls[-1] or sum(calls) < n:
            return real(*args, **kwargs)
        if point != "half":
            die()
        return HalfWritten(real(*args, **kwargs))

    setattr(owner, name, counted)


class HalfWritten:
    """A file that takes half of what is written to it."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __enter__(self) -> HalfWritten:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, content: bytes) -> None:
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        die()


def serve() -> None:
    register_package()
    sys.path.insert(0, str(ROOT / "tests" / "unit"))
    from conftest import ToySource, toy_data

    from rollout_trainer.training.runs.run import reopen, train

    source, data = ToySource(), toy_data()
    print("ready", flush=True)
    for line in sys.stdin:
        path, *point = line.split("\t")
        pid = os.fork()
        if pid == 0:
            try:
                if point:
                    die_at(point[0], int(point[1]))
                train(reopen(Path(path.strip()), source, data), 1_000_000)
            finally:
                os._exit(1)
        print(pid, flush=True)
        sys.stdin.readline()
        print(os.WTERMSIG(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
