"""The campaign of `benchmarks/reliability.py` counts what goes wrong, whatever goes wrong, and goes on where it was."""

import importlib.util
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("reliability", ROOT / "benchmarks" / "reliability.py")
reliability = importlib.util.module_from_spec(spec)
sys.modules["reliability"] = reliability  # its dataclasses look for their module
spec.loader.exec_module(reliability)


def piece(work, **options):
    return reliability.Piece("a fault", work, 3, 5, 7, **options)


def good(folder, tries, seed, count):
    for _ in range(tries):
        count.add("fine")
        count.most("seed", seed)
        count.one()


def third_fails(ending):
    """Tries of which the third, if the seed is the first, ends so."""

    def work(folder, tries, seed, count):
        for i in range(tries):
            if i == 2 and seed == 0:
                ending()
            count.one()

    return work


def raises():
    raise LookupError("not found")


def dies():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        (raises, "LookupError: not found"),
        (dies, "the process ended with -9"),
        (lambda: time.sleep(60), "no answer in 1 s"),
        (lambda: os._exit(0), "ended early"),
    ],
    ids=["an error", "a crash", "a hang", "an early end"],
)
def test_a_process_that_fails_is_one_fault_and_another_goes_on(ending, said):
    found = reliability.watched(piece(third_fails(ending), patience=1.0), 5, 0)
    assert found.tried == 5
    assert found.wrong == 1
    assert said in found.what[0]


def test_a_fault_is_counted_and_told():
    def work(folder, tries, seed, count):
        count.one("this")
        count.one()
        count.wrong("that")

    found = reliability.watched(piece(work), 2, 0)
    assert (found.tried, found.wrong, found.what) == (2, 2, ["this", "that"])


def test_a_campaign_that_was_cut_off_goes_on_with_other_seeds(tmp_path):
    file = tmp_path / "out.jsonl"
    assert reliability.campaign(piece(good), "x", 4, 10, file) == 0
    whole = file.read_text()
    file.write_text(whole + whole.splitlines()[0][:-5])  # a line that was being written
    reliability.campaign(piece(good), "x", 7, 10, file)
    rounds = reliability.written(file)
    assert [(own["tried"], own["seed"], own["most"]) for own in rounds] == [
        (3, 10, {"seed": 10}),
        (1, 11, {"seed": 11}),
        (3, 12, {"seed": 12}),
    ]
    reliability.campaign(piece(good), "x", 7, 10, file)
    assert len(reliability.written(file)) == 3
    assert "| `x` | a fault. | fine 7, seed 12 at most | 7 | 0 |" in reliability.table(rounds)


def test_the_page_has_the_table_of_its_file():
    """``python benchmarks/reliability.py --table docs/reliability.jsonl`` writes it."""
    page = reliability.PAGE.read_text(encoding="utf-8")
    rounds = reliability.written(reliability.PAGE.with_suffix(".jsonl"))
    assert rounds
    assert reliability.page_with(reliability.table(rounds), page) == page
    assert json.dumps(rounds)  # no path of the machine that measured
    assert "/tmp" not in page
