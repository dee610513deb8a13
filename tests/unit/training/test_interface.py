"""The names that a program may rely on: they are there, documented, and cost nothing until they are asked for."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_layers import imported

import rollout_trainer.training as interface

ROOT = Path(__file__).resolve().parents[3]
NAMES = sorted(interface.__all__)
FUNCTIONS = [name for name in NAMES if inspect.isfunction(inspect.unwrap(getattr(interface, name)))]
CONFIGS = [name for name in NAMES if name.endswith("Config")]


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_documented(name):
    value = getattr(interface, name)
    assert len(inspect.getdoc(value) or "") > 20
    page = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    assert f"`{name}`" in page
    for member, own in vars(value).items() if inspect.isclass(value) else ():
        if not member.startswith("_") and (inspect.isfunction(own) or isinstance(own, property)):
            assert inspect.getdoc(own), f"{name}.{member}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_says_what_its_arguments_are_and_what_it_raises(name):
    """Those that go on to a function with the same arguments say so instead."""
    function = inspect.unwrap(getattr(interface, name))
    text = inspect.getdoc(function)
    if "are those of" in text:
        return
    for parameter in inspect.signature(function).parameters:
        assert re.search(rf"\b{parameter}\b", text), f"{name}: {parameter}"
    if name not in ("report", "validate"):  # they raise what opening the run raises
        assert "Raises:" in text


@pytest.mark.parametrize("name", CONFIGS)
def test_every_setting_is_documented(name):
    config = getattr(interface, name)
    (node,) = ast.parse(inspect.getsource(config)).body
    for field, below in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign):
            told = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            described = told or "setting(" in ast.unparse(field)
            nested = "Config" in ast.unparse(field.annotation)
            assert described or nested, f"{name}.{field.target.id}"
    assert dataclasses.is_dataclass(config)


def test_the_list_for_type_checkers_is_the_list():
    tree = ast.parse((ROOT / "training/__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    listed = {alias.asname: f".{node.module}" for node in block.body for alias in node.names}
    assert listed == interface._HOME
    with pytest.raises(AttributeError, match="no attribute 'trainn'"):
        interface.trainn  # noqa: B018


def test_nothing_inside_the_pack_imports_through_it():
    rooms = {path.stem for path in (ROOT / "training").iterdir()}
    for folder in ("nodes", "training", "host"):
        for path in (ROOT / folder).rglob("*.py"):
            package = ".".join(path.relative_to(ROOT).parts[:-1])
            for line, name, ours in imported(path.read_text(encoding="utf-8"), package):
                top, _, rest = name.partition(".")
                if ours and top == "training" and path != ROOT / "training/__init__.py":
                    assert rest.partition(".")[0] in rooms, f"{path}:{line} imports {name}"


def test_settings_come_without_the_libraries_that_read_models():
    script = (
        "import sys, rollout_trainer.training.objective.config as config; config.RolloutConfig();"
        "import rollout_trainer.training as t; t.RolloutConfig; t.TimestepConfig;"
        "print(sorted({'diffusers', 'transformers', 'peft', 'matplotlib'} & set(sys.modules)))"
    )
    assert ran("-c", script).stdout.strip() == "[]"


def ran(*arguments: str) -> subprocess.CompletedProcess[str]:
    """This checkout's package in another process, whatever its folder is called."""
    load = (
        "import importlib.util, runpy, sys\n"
        f"spec = importlib.util.spec_from_file_location('rollout_trainer', {str(ROOT / '__init__.py')!r},"
        f" submodule_search_locations=[{str(ROOT)!r}])\n"
        "package = importlib.util.module_from_spec(spec)\n"
        "sys.modules[spec.name] = package\n"
        "spec.loader.exec_module(package)\n"
        "first = sys.argv.pop(1)\n"
        "if first == '-c': exec(sys.argv[1])\n"
        "else: runpy.run_path(first, run_name='__main__')\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", load, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_the_example_trains_saves_and_draws(tmp_path):
    said = ran(str(ROOT / "demo/train_folder.py"), "--steps", "2", "--out", str(tmp_path)).stdout
    tensors = load_file(tmp_path / "example.safetensors")
    assert f"LoRA: {tmp_path / 'example.safetensors'}" in said
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert any(tensor.any() for name, tensor in tensors.items() if "lora_B" in name)
    assert (tmp_path / "example.png").is_file()
    assert sorted(p.name for p in (tmp_path / "runs/example-0001").glob("state-*.safetensors")) == [
        "state-00000000.safetensors", "state-00000002.safetensors",
    ]  # fmt: skip
