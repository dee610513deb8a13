"""The stand-ins of `host/schema.py` against the V3 classes of a real ComfyUI."""

import inspect
import json
import subprocess

import pytest
from comfyui_process import HOW_TO, environment, find_installation

from rollout_trainer.host import schema
from rollout_trainer.host.standalone import ui as schema_ui

WIDGETS = ("Boolean", "Int", "Float", "String", "Combo")
SOCKETS = (
    *("Image", "Mask", "Latent", "Conditioning", "Model", "Clip", "Vae", "Sampler", "Sigmas", "Noise"),
    *("Guider", "LoraModel", "LossMap", "AnyType"),
)
RESULTS = ("SavedResult", "SavedImages", "PreviewImage", "PreviewText")
ENUMS = ("Hidden", "NumberDisplay", "FolderType", "UploadType")

DUMP = f"""
import inspect, json, sys
from comfy_api.latest import ComfyExtension, io, ui
names = lambda f: [p.name for p in inspect.signature(f).parameters.values()]
found = {{f"{{n}}.{{k}}": names(getattr(getattr(io, n), k).__init__)
         for n in {(*WIDGETS, *SOCKETS)} for k in ("Input", "Output")}}
found |= {{n: names(getattr(io, n).__init__) for n in ("Schema", "NodeOutput")}}
found |= {{n: names(getattr(ui, n).__init__) for n in {RESULTS}}}
found |= {{n: [m.value for m in getattr(io, n)] for n in {ENUMS}}}
found["types"] = {{n: str(getattr(io, n).io_type) for n in {(*WIDGETS, *SOCKETS)}}}
found["custom"] = str(io.Custom("ROLLOUT_X").Input("x").io_type)
found["methods"] = [m for m in dir(io.ComfyNode)]
found["extension"] = [m for m in dir(ComfyExtension)]
print("FOUND" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def real():
    installation = find_installation()
    if installation is None:
        pytest.skip(f"no ComfyUI found: {HOW_TO}")
    command = [installation.python, "-c", DUMP]
    done = subprocess.run(
        command, cwd=installation.folder, env=environment(), capture_output=True, text=True, timeout=120
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
    assert lines, done.stderr[-2000:]
    return json.loads(lines[0][5:])


def names(function):
    return [parameter.name for parameter in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("kind", ["Input", "Output"])
@pytest.mark.parametrize("name", [*WIDGETS, *SOCKETS])
def test_inputs_and_outputs_take_arguments_that_the_host_takes(real, name, kind):
    ours = getattr(getattr(schema, name), kind)
    assert set(names(ours.__init__)) <= set(real[f"{name}.{kind}"])
    assert ours.io_type == real["types"][name]


@pytest.mark.parametrize("name", ["Schema", "NodeOutput"])
def test_schemas_and_results_take_arguments_that_the_host_takes(real, name):
    assert set(names(getattr(schema, name).__init__)) <= set(real[name])


@pytest.mark.parametrize("name", RESULTS)
def test_what_is_shown_takes_arguments_that_the_host_takes(real, name):
    ours = names(getattr(schema_ui, name).__init__)
    assert ours == [item for item in real[name] if item != "kwargs"]


@pytest.mark.parametrize("name", ENUMS)
def test_enumerations_have_values_that_the_host_has(real, name):
    assert {member.value for member in getattr(schema, name)} <= set(real[name])


def test_custom_types_and_methods_are_those_of_the_host(real):
    assert schema.Custom("ROLLOUT_X").Input("x").io_type == real["custom"] == "ROLLOUT_X"
    own = {"define_schema", "execute", "validate_inputs", "fingerprint_inputs", "GET_SCHEMA", "hidden"}
    assert own <= set(real["methods"])
    assert {"on_load", "get_node_list"} <= set(real["extension"])
