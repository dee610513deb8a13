"""What a user may rely on, counted: ``python benchmarks/reliability.py [--long] [--only PIECE ...] [--out FILE]``.

Each piece repeats a fault in rounds. A round is a process of its own with its own seed; one that crashes or says
nothing for too long counts as one fault, and another goes on. Every round is a line of ``--out`` (JSON) as soon as it
is over: a campaign that is cut off goes on where it was, with other seeds. The standard mode takes at most ten minutes
on two cores, ``--long`` the numbers of docs/reliability.md, whose table ``--table FILE`` writes. Nothing needs a GPU.
Pieces that need a ComfyUI (COMFYUI_PATH, as for tests/host) are left out, and named, where there is none.

Exit code 1: something went wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
MOST_STARTS = 10
"""Processes of one round: more than so many crashes end it."""
WRONG_KEPT = 20
"""Faults of a round that are told in words."""


class Count:
    """What comes of a round, told piece by piece to the process that watches it."""

    def __init__(self, tell: Callable[[dict[str, Any]], None]) -> None:
        self.tell = tell

    def one(self, fault: str = "") -> None:
        """One more try; `fault`: it went wrong so."""
        self.tell({"tried": 1, "fault": fault})

    def wrong(self, fault: str) -> None:
        """Something went wrong that is no try of its own."""
        self.tell({"fault": fault})

    def add(self, outcome: str, n: int = 1) -> None:
        """Count a kind of outcome."""
        self.tell({"counts": {outcome: n}})

    def most(self, name: str, value: float) -> None:
        """Keep the largest of these values."""
        self.tell({"most": {name: round(value, 2)}})

    def alive(self) -> None:
        """Nothing new, but it goes on."""
        self.tell({})


@dataclass
class Round:
    """What came of one round."""

    tried: int = 0
    wrong: int = 0
    what: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    most: dict[str, float] = field(default_factory=dict)

    def take(self, told: dict[str, Any]) -> None:
        """One message of a `Count`, or another round."""
        self.tried += told.get("tried", 0)
        what = told.get("what", [told["fault"][:300]] if told.get("fault") else [])
        self.wrong += told.get("wrong", len(what))
        self.what = [*self.what, *what][:WRONG_KEPT]
        self.counts.update(told.get("counts", {}))
        for name, value in told.get("most", {}).items():
            self.most[name] = max(value, self.most.get(name, value))


Work = Callable[[Path, int, int, Count], None]
"""What a piece does in an empty folder: so many tries by a seed."""


@dataclass(frozen=True)
class Piece:
    """A fault that is repeated."""

    fault: str
    """What is done, and what must come of it."""
    work: Work
    round: int
    """Tries of one process."""
    usual: int
    """Tries of the standard mode."""
    often: int
    """Tries with ``--long``."""
    patience: float = 60.0
    """Seconds of silence after which a process hangs; a try that is slower than the piece allows is its own fault."""
    host: bool = False
    """Whether it needs a ComfyUI."""


# -- a round, watched --------------------------------------------------------------------------------


def watched(piece: Piece, tries: int, seed: int) -> Round:
    """So many tries, in a process that is started anew whenever it crashes or hangs."""
    found = Round()
    for start in range(MOST_STARTS):
        with tempfile.TemporaryDirectory() as folder:
            ended = listen(
                *forked(piece, Path(folder), tries - found.tried, seed + 7919 * start), piece, found
            )
        if ended or found.tried < tries:
            found.take({"tried": 1, "fault": f"try {found.tried + 1}: {ended or 'the process ended early'}"})
        if found.tried >= tries:
            break
    return found


def forked(piece: Piece, folder: Path, tries: int, seed: int) -> tuple[int, int]:
    """A process group that works, and what it tells."""
    heard, told = os.pipe()
    pid = os.fork()
    if pid:
        os.close(told)
        return pid, heard
    code = 1
    try:
        os.setpgid(0, 0)  # no session of its own, which would have a priority of its own too
        os.close(heard)
        piece.work(
            folder, tries, seed, Count(lambda message: write(told, json.dumps(message).encode() + b"\n"))
        )
        code = 0
    except BaseException as err:
        write(told, json.dumps({"ended": f"{type(err).__name__}: {err}"[:300]}).encode() + b"\n")
    finally:
        os._exit(code)


def write(file: int, content: bytes) -> None:
    """All of it."""
    while content:
        content = content[os.write(file, content) :]


def listen(pid: int, heard: int, piece: Piece, found: Round) -> str:
    """Take what a process tells until it ends; what was wrong with its end, "" if nothing."""
    rest, ended = b"", ""
    try:
        while not ended:
            if not select.select([heard], [], [], piece.patience)[0]:
                ended = f"no answer in {piece.patience:g} s"
            elif content := os.read(heard, 1 << 16):
                *lines, rest = (rest + content).split(b"\n")
                for told in map(json.loads, lines):
                    ended = told.get("ended", ended)
                    found.take(told)
            else:
                return "" if (code := ended_with(pid)) == 0 else f"the process ended with {code}"
        return ended
    finally:
        os.close(heard)
        end(pid)


ENDED: dict[int, int] = {}
"""Exit codes of the processes that were waited for."""


def ended_with(pid: int) -> int:
    """Wait for a process; its exit code, negative for a signal."""
    if pid not in ENDED:
        ENDED[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return ENDED[pid]


def end(pid: int) -> None:
    """End a process and all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all of them have ended
        os.killpg(pid, signal.SIGKILL)
    ended_with(pid)


# -- processes that are killed -----------------------------------------------------------------------


def kills(backend: str) -> Work:
    """`killed.py` of a backend; its figures count once its run was compared with the uninterrupted one."""

    def work(folder: Path, tries: int, seed: int, count: Count) -> None:
        python, environment = sys.executable, os.environ | {"OMP_NUM_THREADS": "1"}
        if backend == "host":
            python = str(installation().python)
            stubs = [str(ROOT / "tests/host/stubs"), os.environ.get("PYTHONPATH", "")]
            environment |= {
                "COMFYUI_PATH": str(installation().folder),
                "PYTHONPATH": os.pathsep.join(filter(None, stubs)),
            }
        program = [python, str(ROOT / "benchmarks" / "killed.py"), backend, str(tries), str(seed)]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                [*program, str(folder / "work"), str(folder / "result.json")],
                env=environment, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
            assert process.stdout is not None
            for _ in process.stdout:
                count.alive()
        if process.wait():
            raise RuntimeError(
                f"killed.py ended with {process.returncode}: {(folder / 'log').read_text()[-250:]}"
            )
        count.tell(json.loads((folder / "result.json").read_text()))

    return work


# -- a real ComfyUI ----------------------------------------------------------------------------------


def installation() -> Any:
    """The ComfyUI of the host tests, or None."""
    from comfyui_process import find_installation

    return find_installation()


def cancels(folder: Path, tries: int, seed: int, count: Count) -> None:
    """`reached.cancel_often`."""
    from reached import cancel_often

    cancel_often(installation(), folder, tries, seed, count)


def routes(folder: Path, tries: int, seed: int, count: Count) -> None:
    """`reached.request_often`."""
    from reached import request_often

    request_often(installation(), folder, tries, seed, count)


def pieces() -> dict[str, Piece]:
    """All of them; what trains is imported here, so that `--table` needs none of it."""
    sys.path[:0] = [str(ROOT / "tests" / "unit"), str(ROOT / "tests" / "host")]
    from killed_training import register_package

    if "rollout_trainer" not in sys.modules:
        register_package()
    import hindered
    import spoilt

    return {
        "kills_demo": Piece(
            "SIGKILL at random moments of training, saving, encoding and exporting, the demo's diffusers model: the "
            "run goes on as the uninterrupted one",
            kills("demo"), 25, 25, 200, patience=600.0,
        ),
        "kills_host": Piece(
            "The same on a MODEL as ComfyUI loads it, in its interpreter",
            kills("host"), 25, 25, 200, patience=600.0, host=True,
        ),
        "cancels": Piece(
            "Cancels at random moments in a real ComfyUI: the state is saved, the MODEL samples the same bits as "
            "before",
            cancels, 50, 5, 50, patience=600.0, host=True,
        ),
        "workflows": Piece(
            "Mutated workflows: printable lines of at most 300 characters or valid, in five seconds, nothing written",
            spoilt.workflows, 1_000, 1_000, 10_000,
        ),
        "damage": Piece(
            "Damaged states, settings, LoRAs, caches, pictures, captions, models, configs: one line, or unharmed",
            spoilt.damage, 200, 200, 1_000, patience=120.0,
        ),
        "disk": Piece(
            "A disk that is full, read-only or broken from a random write on: goes on or one line, then goes on "
            "exactly",
            hindered.disk, 30, 30, 200,
        ),
        "memory": Piece(
            "Memory that runs out in a random model call: the state is saved, what follows is the uninterrupted run",
            hindered.memory, 30, 30, 200,
        ),
        "not_finite": Piece(
            "A model that answers NaN in a random call: the step is skipped and said, no weight is ever NaN",
            hindered.not_finite, 30, 30, 200,
        ),
        "two": Piece(
            "Two processes on one runs folder, one run, one name of LoRA files and one cache",
            hindered.two, 5, 5, 20, patience=300.0,
        ),
        "routes": Piece(
            "Requests with traversal, odd names, foreign origins and bodies: nothing outside a run, no error 500",
            routes, 2_000, 500, 2_000, patience=300.0, host=True,
        ),
        "expressions": Piece(
            "Regular expressions that explode, as `targets`: an answer in a limited time",
            spoilt.expressions, 12, 12, 60,
        ),
        "unpickling": Piece(
            "A training from loading to exporting and back, watched for whatever is unpickled",
            hindered.unpickling, 1, 1, 1, patience=300.0,
        ),
    }  # fmt: skip


# -- the campaign ------------------------------------------------------------------------------------


def written(file: Path) -> list[dict[str, Any]]:
    """The rounds in a file; none if there is no file. A line that was cut off does not count."""
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}}")]


def append(file: Path, line: dict[str, Any]) -> None:
    """One more round; a line that was cut off stays a line of its own."""
    whole = not file.exists() or file.read_bytes()[-1:] in (b"", b"\n")
    with file.open("a") as out:
        out.write(("" if whole else "\n") + json.dumps(line) + "\n")


def campaign(piece: Piece, name: str, tries: int, seed: int, file: Path) -> int:
    """Rounds of a piece until the file holds so many tries; how much went wrong in them."""
    known = [own for own in written(file) if own["piece"] == name]
    done, wrong = sum(own["tried"] for own in known), 0
    for number in range(len(known), len(known) + tries):
        if done >= tries:
            break
        begun, wanted = time.monotonic(), min(piece.round, tries - done)
        found = watched(piece, wanted, seed + number)
        seconds = round(time.monotonic() - begun)
        line = {
            "piece": name,
            "fault": piece.fault,
            "seed": seed + number,
            "seconds": seconds,
            **vars(found),
        }
        append(file, line)
        done, wrong = done + found.tried, wrong + found.wrong
        print(
            f"{name}: {found.tried} times in {seconds} s, {found.wrong} wrong {json.dumps(found.counts)}",
            flush=True,
        )
        print(*(f"  {text}\n" for text in found.what[:5]), sep="", end="", flush=True)
    return wrong


def table(rounds: Iterable[dict[str, Any]]) -> str:
    """The rounds of each piece, summed up, as a Markdown table."""
    sums: dict[str, Round] = {}
    faults: dict[str, str] = {}
    for own in rounds:
        faults[own["piece"]] = own["fault"]
        sums.setdefault(own["piece"], Round()).take(own)
    lines = ["| piece | fault | what came of it | tried | wrong |", "|---|---|---|---|---|"]
    for name, found in sums.items():
        outcomes = [f"{outcome} {n:,}" for outcome, n in found.counts.items()]
        outcomes += [f"{outcome} {value:g} at most" for outcome, value in found.most.items()]
        lines.append(
            f"| `{name}` | {faults[name]}. | {', '.join(outcomes)} | {found.tried:,} | {found.wrong:,} |"
        )
    return "\n".join(lines)


BEGIN = "<!-- table: python benchmarks/reliability.py --table docs/reliability.jsonl -->\n"
END = "<!-- end of table -->"


def page_with(table: str, page: str) -> str:
    """docs/reliability.md with this table."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}{table}\n{END}{rest.partition(END)[2]}"


def main() -> int:
    """Run the pieces and print a line for each round."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--long", action="store_true", help="as often as docs/reliability.md says")
    parser.add_argument("--only", nargs="+", default=[], metavar="PIECE")
    parser.add_argument("--times", type=int, help="how often each of these, instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("reliability.jsonl"))
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the page's table, run nothing")
    options = parser.parse_args()
    if options.table:
        PAGE.write_text(page_with(table(written(options.table)), PAGE.read_text()))
        return 0
    logging.disable(logging.WARNING)
    failed, known = 0, pieces()
    if unknown := set(options.only) - known.keys():
        parser.error(f"--only must name some of {', '.join(known)}, got {', '.join(sorted(unknown))}")
    for name, piece in known.items():
        if options.only and name not in options.only:
            continue
        if piece.host and installation() is None:
            print(f"{name}: left out, no ComfyUI: set COMFYUI_PATH", flush=True)
            continue
        tries = options.times or (piece.often if options.long else piece.usual)
        failed += campaign(piece, name, tries, options.seed, options.out)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
