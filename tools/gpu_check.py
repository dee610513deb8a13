"""Does the pack work, fit and run fast on this machine's GPU? Every part that no CPU can answer, in one command.

    python tools/gpu_check.py [--out DIR] [--minutes 9] [--parts NAME ...]   on a GPU
    python tools/gpu_check.py --toy [--out DIR]                              the same parts, small, on a CPU
    python tools/gpu_check.py --render DIR/results.jsonl > docs/gpu.md       its results as a page

Parts run in the order of `PARTS`, the most valuable first, each in a process of its own with a time limit of its own;
those that measure no time run side by side. A part that fails, hangs or dies does not stop the next; what is known is
written to ``results.jsonl`` the moment it is known, one JSON object a line. Nothing is downloaded. The parts with a
ComfyUI need COMFYUI_PATH, as the host tests do. docs/gpu.md says how to bring all of it to a machine without a network.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Part:
    """A part of the check."""

    name: str
    run: str
    """``module:function`` in tools/gpu; the function takes a `Check`, and the part's option."""
    limit: float
    """Seconds after which it is stopped on a GPU."""
    option: str = ""
    toy_limit: float = 240.0
    alone: bool = True
    """Whether it measures time. Others run beside each other, as many as there are pairs of cores."""

    def __call__(self, check: Check) -> None:
        """Run it here and now."""
        module, _, function = self.run.partition(":")
        getattr(importlib.import_module(f"gpu.{module}"), function)(check, self.option)


HOST_MODES = (
    *("dynamic", "nothing kept", "--disable-dynamic-vram", "--lowvram", "--novram"),
    "--disable-dynamic-vram --lowvram",
)
PARTS = (
    Part("host, reference", "host:reference", 100, alone=False),
    *(Part(f"host, {mode}", "host:mode", 140, mode, alone=False) for mode in HOST_MODES),
    Part("parity", "parity:run", 140, alone=False),
    Part("attention", "attention:run", 30),
    Part("real host", "host:real", 150, "12"),
    Part("sizes, compiled", "sizes:run", 150, "compiled"),
    Part("sizes, flux", "sizes:run", 110, "flux"),
    Part("sizes, others", "sizes:run", 130, "others"),
    Part("pictures", "sizes:pictures", 40),
    Part("loop", "speed:loop", 60),
    Part("host, speed", "speed:beside_the_host", 70),
    Part("study", "speed:study", 240, toy_limit=900),
)
REHEARSAL = tuple(
    Part(f"rehearsal, {end}", "rehearsal:run", 3, end, 3) for end in ("raises", "dies", "hangs", "ends")
)
"""For the test of this file: parts that end as no part should, and one that does as it should."""


@dataclass(frozen=True)
class Check:
    """What a part needs to know, and where it says what it found."""

    toy: bool
    results: Path
    work: Path
    """A folder for what parts hand on to each other, not part of the results."""
    part: str = ""

    @property
    def device(self) -> str:
        """Where to compute."""
        return "cpu" if self.toy else "cuda"

    def tell(self, case: str, ok: bool, **facts: Any) -> bool:
        """Write one result down; returns `ok`."""
        line = {"part": self.part, "case": case, "ok": bool(ok), **facts}
        with self.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=str) + "\n")
        print(("ok     " if ok else "FAILED ") + f"{self.part}: {case} {facts}", flush=True)
        return ok


# --- running ------------------------------------------------------------------------------------------


def environment(work: Path) -> dict[str, str]:
    """Variables of a part's process: the pack is importable by its name, and nothing asks the network."""
    paths = [str(work / "packages"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # what deterministic algorithms ask for
    }


def run_part(part: Part, check: Check, limit: float) -> None:
    """Run a part in a process group of its own for at most `limit` seconds; say so if it did not end well."""
    options = ["--toy"] if check.toy else []
    command = [sys.executable, str(Path(__file__).resolve()), "--part", part.name, *options]
    command += ["--out", str(check.results.parent), "--work", str(check.work)]
    begin, code = time.monotonic(), None
    process = subprocess.Popen(command, env=environment(check.work), start_new_session=True)
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        pass
    finally:
        stop(process)
    seconds = round(time.monotonic() - begin, 1)
    why = {} if code == 0 else {"error": f"stopped after {limit:.0f} s" if code is None else f"exit {code}"}
    check.tell("ran to its end", code == 0, seconds=seconds, **why)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a part and all that it started."""
    for sign, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def facts(check: Check) -> dict[str, Any]:
    """The machine, the versions, the commit, the date."""
    import platform

    import torch

    commit = os.environ.get("ROLLOUT_COMMIT", "")
    if not commit:
        asked = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
        found = subprocess.run(asked, capture_output=True, text=True, check=False)
        commit = found.stdout.strip() or "unknown"
    cuda = not check.toy and torch.cuda.is_available()
    return {
        "card": torch.cuda.get_device_name() if cuda else "none (CPU, toy sizes)",
        "memory": torch.cuda.get_device_properties(0).total_memory if cuda else 0,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
    }


def run_all(check: Check, parts: Sequence[Part], seconds: float) -> bool:
    """Run the parts while there is time; whether every result is good."""
    end = time.monotonic() + seconds
    packages = check.work / "packages"
    packages.mkdir()
    (packages / "rollout_trainer").symlink_to(ROOT, target_is_directory=True)
    replace(check, part="machine").tell("what this is", True, **facts(check))

    def run(part: Part) -> None:
        own, left = replace(check, part=part.name), end - time.monotonic()
        if left < 2:
            own.tell("ran to its end", False, error=f"not begun: {max(left, 0):.0f} s of the time are left")
        else:
            run_part(part, own, min(part.toy_limit if check.toy else part.limit, left))

    for alone, several in groupby(parts, lambda part: part.alone):
        side_by_side = 1 if alone else max((os.cpu_count() or 1) // 2, 1)
        with ThreadPoolExecutor(side_by_side) as threads:
            list(threads.map(run, several))
    return all(line["ok"] for line in read(check.results))


def run_one(part: Part, check: Check) -> int:
    """Run a part in this process."""
    import traceback

    sys.path.insert(0, str(ROOT / "tools"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # what it holds is let go of, logs are kept
    try:
        part(check)
    except Exception as err:  # what failed is a result like any other
        where = traceback.format_exc(limit=-6)
        check.tell("no error", False, error=f"{type(err).__name__}: {err}"[:2000], where=where[-3000:])
        return 1
    return 0


# --- the page -----------------------------------------------------------------------------------------

UNSEEN = "No card was seen yet: the parts below ran at toy size on a CPU, and every figure is one of a CPU."


def read(results: Path) -> list[dict[str, Any]]:
    """All lines of a results file."""
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines() if line]


def page(results: Path) -> Iterator[str]:
    """The results as Markdown, a table for each part."""
    lines = read(results)
    machine = next((line for line in lines if line["part"] == "machine"), {})
    toy = str(machine.get("card", "none")).startswith("none")
    yield UNSEEN if toy else f"Measured on {machine['card']}."
    yield ""
    told = ", ".join(f"{k} {machine[k]}" for k in ("date", "commit", "torch", "python") if k in machine)
    yield f"`python tools/gpu_check.py{' --toy' if toy else ''}`: {told}."
    for part in dict.fromkeys(line["part"] for line in lines if line["part"] != "machine"):
        own = [line for line in lines if line["part"] == part]
        yield f"\n### {part}\n\n| case | good | found |\n|---|---|---|"
        for line in own:
            found = ", ".join(f"{k} {shown(v)}" for k, v in line.items() if k not in BESIDE)
            yield f"| {line['case']} | {'yes' if line['ok'] else '**no**'} | {found} |"


BESIDE = ("part", "case", "ok", "where")


def shown(value: Any) -> str:
    """A value for a cell."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "/").replace("\n", " ")[:300]


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--toy", action="store_true", help="small sizes, on the CPU")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "gpu", help="where results.jsonl goes")
    parser.add_argument("--minutes", type=float, help="for all parts together: 9, with --toy 40")
    parser.add_argument("--parts", nargs="+", metavar="NAME", help="those whose name begins so alone")
    parser.add_argument("--render", type=Path, metavar="JSONL", help="print results as a page, and end")
    parser.add_argument(
        "--part", choices=[part.name for part in (*PARTS, *REHEARSAL)], help=argparse.SUPPRESS
    )
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.render:
        print("\n".join(page(options.render)))
        return
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    results = out / "results.jsonl"
    if options.part:
        part = next(part for part in (*PARTS, *REHEARSAL) if part.name == options.part)
        raise SystemExit(run_one(part, Check(options.toy, results, options.work, part.name)))
    results.write_text("")
    asked = tuple(options.parts or ())
    parts = [p for p in (*PARTS, *REHEARSAL) if p.name.startswith(asked)] if asked else PARTS
    minutes = options.minutes or (40 if options.toy else 9)
    with tempfile.TemporaryDirectory() as work:
        good = run_all(Check(options.toy, results, Path(work)), parts, minutes * 60)
    print(f"{results}: {'all good' if good else 'something is not good'}")
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
