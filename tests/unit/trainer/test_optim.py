"""What an optimiser keeps is written and read exactly, with the real packages; whatever it is."""

import json
import math

import pytest
import torch
from everything import EVERYTHING, same
from torch import nn

from rollout_trainer.training.files import write_tensors
from rollout_trainer.training.runs.run import reopen, start, train
from rollout_trainer.training.trainer.optim import (
    OptimizerConfig,
    build_optimizer,
    pack_optimizer,
    unpack_optimizer,
)
from rollout_trainer.training.trainer.packing import apart, pack, unpack

REAL = ["adamw", "adafactor", "prodigy", "adamw8bit"]
LR = {"prodigy": 1.0}


def stepped(name: str, steps: int, parameters: list[nn.Parameter]):
    optimizer = build_optimizer(OptimizerConfig(name, lr=LR.get(name, 1e-3)), parameters)
    walk(optimizer, parameters, range(steps))
    return optimizer


def walk(optimizer, parameters, steps) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


def alike(a, b) -> bool:
    """Whether two nested values are the same, types and bits; the order of keys does not count."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(alike, a, b))
    return repr(a) == repr(b)


def parameters() -> list[nn.Parameter]:
    """One large enough that bitsandbytes keeps 8 bits of its moments, one that it keeps whole."""
    generator = torch.Generator().manual_seed(9)
    return [nn.Parameter(torch.randn(size, generator=generator)) for size in ((64, 128), (4, 8))]


@pytest.mark.parametrize("name", REAL)
def test_an_optimiser_goes_on_from_a_file_as_if_nothing_had_been(name, tmp_path):
    own = parameters()
    optimizer = stepped(name, 3, own)
    tensors, values = pack_optimizer(optimizer)
    write_tensors(tmp_path / "o.safetensors", tensors, {"state": json.dumps(values, allow_nan=False)})
    from safetensors import safe_open

    with safe_open(tmp_path / "o.safetensors", "pt") as file:
        read = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        values = json.loads(file.metadata()["state"])
    again = [nn.Parameter(p.detach().clone()) for p in own]
    other = build_optimizer(OptimizerConfig(name, lr=LR.get(name, 1e-3)), again)
    unpack_optimizer(other, read, values)
    walk(optimizer, own, range(3, 6))
    walk(other, again, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(own, again, strict=True))
    assert alike(optimizer.state_dict(), other.state_dict())


@pytest.mark.parametrize("name", REAL)
def test_a_run_resumes_bit_for_bit_with_the_real_package(name, make_source, make_data, make_config, tmp_path):
    optimizer = OptimizerConfig(name, lr=LR.get(name, 1e-3), schedule="cosine", warmup_steps=2)
    config, data = make_config(**EVERYTHING | {"optimizer": optimizer, "steps": 12}), make_data()
    whole = train(start(tmp_path, "w", make_source("flow"), data, config), 12)
    half = train(start(tmp_path, "h", make_source("flow"), data, config), 5)
    rest = train(reopen(half.folder.path, make_source("flow"), data), 7)
    assert same(whole.state, rest.state)
    first = reopen(whole.folder.path, make_source("flow"), data, 0).adapter
    assert any(not torch.equal(first.tensors[k], v) for k, v in whole.adapter.tensors.items())


VALUES = [
    None, True, 3, 2**80, 0.1, math.inf, -math.inf, "text", "$tensor", [], (), {}, (1, (2.0, [None])),
    {"a": {"b": (math.inf, "x")}}, {1: "x", (2, 3): [], None: 1}, {"$tensor": 1}, {"$x": 1, "y": 2}, torch.bfloat16,
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_come_back_as_they_were(value):
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(pack(value, "v", tensors), allow_nan=False)
    back = unpack(json.loads(text), tensors)
    assert back == value
    assert repr(back) == repr(value)  # 1 is no True, a tuple no list


def test_nan_and_nested_tensors_come_back_as_they_were():
    tensor = torch.arange(3)
    tensors: dict[str, torch.Tensor] = {}
    packed = pack({"a": [tensor, {"b": (tensor, math.nan)}]}, "v", tensors)
    back = unpack(json.loads(json.dumps(packed, allow_nan=False)), apart(tensors))
    assert torch.equal(back["a"][0], tensor)
    assert torch.equal(back["a"][1]["b"][0], tensor)
    assert math.isnan(back["a"][1]["b"][1])


def test_what_cannot_be_written_is_named():
    with pytest.raises(TypeError, match=r"v\.a must be of a kind that a state can hold exactly, got object"):
        pack({"a": object()}, "v", {})


def test_types_survive_that_loading_would_cast():
    """torch casts a parameter's floating state to the parameter's type as it loads."""

    class Double(torch.optim.SGD):
        pass

    own = [nn.Parameter(torch.zeros(2))]
    optimizer = Double(own, lr=0.1)
    optimizer.state[own[0]]["kept"] = torch.tensor([1 / 3], dtype=torch.float64)
    tensors, values = pack_optimizer(optimizer)
    other = Double([nn.Parameter(torch.zeros(2))], lr=0.1)
    unpack_optimizer(other, tensors, values)
    assert alike(other.state_dict(), optimizer.state_dict())
    assert tensors["0.kept"].dtype == torch.float64
