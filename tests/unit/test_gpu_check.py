"""The GPU check itself: nothing that a part does may cost another part's result, and a page never claims a card."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import gpu_check
import gpu_prepare
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu")
    command = [sys.executable, str(ROOT / "tools" / "gpu_check.py"), "--toy", "--parts", "rehearsal"]
    run = subprocess.run(
        [*command, "--out", str(out)], capture_output=True, text=True, timeout=120, check=False
    )
    return run, gpu_check.read(out / "results.jsonl"), out / "results.jsonl"


def results(lines, part):
    return [line for line in lines if line["part"] == f"rehearsal, {part}"]


def test_parts_that_raise_die_or_hang_do_not_stop_the_next(rehearsed):
    run, lines, _ = rehearsed
    assert run.returncode == 1
    raised = results(lines, "raises")
    assert [line["ok"] for line in raised] == [True, False, False]
    assert raised[1]["error"] == "ValueError: on purpose"
    assert results(lines, "dies")[-1]["error"] == "exit 3"
    assert results(lines, "hangs")[-1]["error"] == "stopped after 3 s"
    assert [line["ok"] for line in results(lines, "ends")] == [True, True]


def test_what_was_known_before_a_part_died_is_kept(rehearsed):
    _, lines, _ = rehearsed
    for part in ("raises", "dies", "hangs", "ends"):
        assert results(lines, part)[0]["case"] == "begun"


def test_the_time_that_is_left_is_respected(tmp_path):
    results_file = tmp_path / "results.jsonl"
    check = gpu_check.Check(True, results_file, tmp_path)
    begin = time.monotonic()
    assert not gpu_check.run_all(check, gpu_check.REHEARSAL[-1:], 1.0)
    assert time.monotonic() - begin < 30
    assert "not begun" in gpu_check.read(results_file)[-1]["error"]


def test_a_stopped_part_takes_its_own_processes_along(tmp_path):
    hangs = next(part for part in gpu_check.REHEARSAL if part.option == "hangs")
    check = gpu_check.Check(True, tmp_path / "results.jsonl", tmp_path, hangs.name)
    gpu_check.run_part(hangs, check, 6)
    child = int((tmp_path / "child").read_text())
    state = Path(f"/proc/{child}/stat")
    if not Path("/proc").is_dir():
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
    deadline = (
        time.monotonic() + 20
    )  # a signal that was sent takes a moment to end a process on a busy machine
    while alive(state) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(state)


def alive(state: Path) -> bool:
    """Whether the process of this /proc file still runs; one that waits for its parent to look does not."""
    try:
        return state.read_text().split(")")[1].split()[0] not in "ZX"
    except OSError:  # it went between two looks
        return False


def test_a_toy_run_never_claims_a_card(rehearsed):
    *_, file = rehearsed
    page = list(gpu_check.page(file))
    assert page[0] == gpu_check.UNSEEN
    assert any("| begun | yes |" in line for line in page)


def test_the_page_in_docs_begins_with_what_was_seen():
    first = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8").splitlines()[0]
    assert first == gpu_check.UNSEEN or first.startswith("Measured on ")


def test_what_is_carried_of_the_host_is_trimmed(tmp_path):
    for name in (
        "main.py",
        "comfy/ops.py",
        "comfy/__pycache__/x.pyc",
        ".venv/bin/python",
        "models/big",
        "tests/t.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    found = {path.relative_to(tmp_path).as_posix() for path in gpu_prepare.kept(tmp_path)}
    assert found == {"main.py", "comfy/ops.py"}


def test_the_run_command_in_docs_fits_the_machines_limit():
    text = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    commands = [part for part in text.split("```")[1::2] if "run.sh" in part]
    assert commands
    assert all(len(command) < 2000 for command in commands)


def test_results_are_json_lines(rehearsed):
    *_, file = rehearsed
    for line in file.read_text(encoding="utf-8").splitlines():
        assert {"part", "case", "ok"} <= json.loads(line).keys()


def test_networks_are_trained_in_every_way_at_toy_size(tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "gpu_check.py"), "--toy", "--out", str(tmp_path)]
    run = subprocess.run(
        [*command, "--parts", "attention", "sizes, flux"], capture_output=True, text=True, check=False
    )
    lines = gpu_check.read(tmp_path / "results.jsonl")
    assert run.returncode == 0, [line for line in lines if not line["ok"]] or run.stdout[-2000:]
    assert "full+swap+gradient_checkpointing" in {line["case"] for line in lines}
