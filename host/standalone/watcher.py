"""A process that ends another one at its second signal, whatever that is at.

It must be a process: a call that hangs may hold what Python needs to run any of its threads.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

WATCHING = """
import os, select, signal, sys
pid, patience, numbers = int(sys.argv[1]), float(sys.argv[2]), [int(n) for n in sys.argv[3:]]
told = 0
while told < 2:
    got = os.read(0, 1)
    if not got:
        sys.exit()
    told += got[0] in numbers
while select.select([0], [], [], patience)[0]:
    if os.read(0, 1) in (b"", b"\\0"):
        sys.exit()
os.kill(pid, signal.SIGKILL)
"""
"""The program: it learns of each signal from the system itself, and of the end by the end of its input or a zero."""


def watched_by_process(reading: socket.socket, numbers: Sequence[int], patience: float) -> Callable[[], None]:
    """Start it; how to wait for its end.

    Args:
        reading: the end of a pair whose other end is this process's wakeup file, and gets a zero once nothing is to be
            watched any more; it is closed here.
        numbers: the signals that count.
        patience: seconds from the second one on.

    Raises:
        OSError: no process can be started.
    """
    arguments = [str(os.getpid()), str(patience), *(str(int(number)) for number in numbers)]
    # In a session of its own: what a terminal sends to all of its programs is not meant for it.
    watcher = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", WATCHING, *arguments],
        stdin=reading.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    reading.close()

    def stop() -> None:
        with suppress(subprocess.TimeoutExpired):
            watcher.wait(patience)

    return stop
