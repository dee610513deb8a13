"""Malformed workflows: one printable line each, at most 300 characters, no traceback, no hang; signals always end."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mutation import mutated

from rollout_trainer.__main__ import main
from rollout_trainer.messages import one_line

CASES = sorted((Path(__file__).parent / "cases").glob("*.json"))
GRAPH = Path(__file__).parents[3] / "workflows" / "quickstart.json"


def checked(capsys, path):
    code = main(["validate", str(path)])
    _, err = capsys.readouterr()
    for line in err.splitlines():
        assert line.isprintable()
        assert len(line) <= 310, line[:400]
    assert "Traceback" not in err
    if code:
        assert code == 2
        assert all(line.startswith("error: ") for line in err.splitlines() if line)
    return code


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_known_malformed_workflows_are_told_in_a_line(path, capsys):
    assert CASES
    checked(capsys, path)


def test_nesting_and_numbers_without_end_are_told_in_a_line(tmp_path, capsys):
    for text in (
        "[" * 100_000,
        '{"1": ' * 5000,
        '{"1": ' + "9" * 6000 + "}",
        '{"nodes": [{"id": 1e999}]}',
        '"a',
        "\x1b[31m",
    ):
        (tmp_path / "w.json").write_text(text)
        assert checked(capsys, tmp_path / "w.json") == 2


def test_mutated_workflows_are_told_in_lines(tmp_path, capsys):
    whole, rng = json.loads(GRAPH.read_text()), random.Random(4)
    codes = []
    for _ in range(150):
        (tmp_path / "w.json").write_text(json.dumps(mutated(whole, rng)))
        codes.append(checked(capsys, tmp_path / "w.json"))
    assert 0 < codes.count(2) < 150


def test_a_line_is_a_line():
    assert one_line("a\n\x1b[31mb\u202e") == "a  [31mb "
    assert len(one_line("x" * 9999)) == 300
    assert one_line(MemoryError()) == "MemoryError"


SCRIPT = """
import sys, time
sys.path.insert(0, {unit!r})
from killed_training import register_package
register_package()
from pathlib import Path
from rollout_trainer.host.standalone import host as h
h.PATIENCE = 0.3
own = h.StandaloneHost(Path("."))
try:
    with h.interruptible(own):
        print("ready", flush=True)
        {before}
        while not own.cancel_requested():
            time.sleep(0.01)
        print("cancelled", flush=True)
        {then}
except KeyboardInterrupt:
    {interrupted}
"""


def process(then, interrupted="raise", before="pass"):
    unit = str(Path(__file__).parents[1])
    script = SCRIPT.format(unit=unit, then=then, interrupted=interrupted, before=before)
    own = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert own.stdout.readline() == "ready\n"
    return own


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP on this system")
@pytest.mark.parametrize("number", ["SIGHUP", "SIGTERM", "SIGINT"])
def test_every_signal_asks_to_stop_first(number):
    own = process("pass")
    own.send_signal(getattr(signal, number))
    assert own.stdout.readline() == "cancelled\n"
    assert own.wait(10) == 0


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_process_that_answered_a_second_signal_lives_on():
    own = process("time.sleep(5)", "time.sleep(1); print('alive', flush=True)")
    own.send_signal(signal.SIGTERM)
    assert own.stdout.readline() == "cancelled\n"
    own.send_signal(signal.SIGTERM)
    assert own.stdout.readline() == "alive\n"
    assert own.wait(10) == 0


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_second_signal_ends_a_step_that_never_returns(number):
    """A call that holds Python's lock: neither a handler nor a thread of Python's ever runs again."""
    own = process("pass", before="import re; re.match('(a+)+$', 'a' * 64 + '!')")
    time.sleep(0.5)
    own.send_signal(getattr(signal, number))
    time.sleep(0.5)
    assert own.poll() is None
    own.send_signal(signal.SIGTERM)
    assert own.wait(20) != 0


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_second_signal_ends_a_process_that_answers_nothing():
    """The main thread waits where no handler of Python's ever runs."""
    own = process(
        "import _thread; lock = _thread.allocate_lock(); lock.acquire(); lock.acquire()\n        while True: pass"
    )
    own.send_signal(signal.SIGTERM)
    own.stdout.readline()
    begun = time.monotonic()
    own.send_signal(signal.SIGTERM)
    assert own.wait(20) != 0
    assert time.monotonic() - begun < 15
