"""The parts of tools/gpu_check.py that drive a ComfyUI, at toy size: the same flow as on a card."""

import os
import subprocess
import sys
from pathlib import Path

import gpu_check
import pytest
from comfyui_process import find_installation

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(600)
def test_the_flow_on_the_host_is_good_on_a_cpu(tmp_path: Path) -> None:
    installation = find_installation()
    if installation is None:
        pytest.skip("no ComfyUI found")
    names = ["host, reference", "host, dynamic"]
    command = [
        sys.executable,
        str(ROOT / "tools" / "gpu_check.py"),
        "--toy",
        "--out",
        str(tmp_path),
        "--parts",
    ]
    environment = {**os.environ, "COMFYUI_PATH": str(installation.folder)}
    run = subprocess.run([*command, *names], env=environment, capture_output=True, text=True, check=False)
    lines = gpu_check.read(tmp_path / "results.jsonl")
    assert run.returncode == 0, [line for line in lines if not line["ok"]] or run.stdout[-3000:]
    cases = {line["case"] for line in lines if line["part"] == "host, dynamic"}
    assert {"sd3: the MODEL samples the same bits after training", "sd3: the LoRA is the CPU's"} <= cases
