"""LoRA files come back as the adapter that wrote them; other tools' files act as they do elsewhere."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rollout_trainer.training.lora.adapter import Adapter, LoRAConfig, attached
from rollout_trainer.training.lora.file import folded, kohya_names, peft_names
from rollout_trainer.training.lora.reading import read_lora
from rollout_trainer.training.runs.export import FORMAT


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q = nn.Linear(6, 6)
        self.to_out = nn.ModuleList([nn.Linear(6, 6)])

    def forward(self, x):
        return self.to_out[0](torch.tanh(self.to_q(x)))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block()).requires_grad_(False)


def trained(network, kind="lora", rank=3, alpha=2.0):
    """An adapter with random weights, as after training."""
    adapter = Adapter(network, LoRAConfig(kind, rank, alpha, targets=("to_q", "to_out")))
    g = torch.Generator().manual_seed(1)
    for p in adapter.parameters():
        p.data = torch.randn(p.shape, generator=g)
    state = adapter.state()
    adapter.detach()
    return state


def output(network, state):
    with attached(network, state):
        return network(torch.linspace(-1, 1, 12).view(2, 6))


def header(state):
    import json

    from rollout_trainer.training.checks import to_plain

    return {"format": FORMAT, "config": json.dumps({"lora": to_plain(state.config)})}


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
def test_our_own_files_come_back(kind, network, tmp_path):
    state = trained(network, kind)
    save_file(peft_names(folded(state), "transformer"), tmp_path / "a.safetensors", header(state))
    again = read_lora(tmp_path / "a.safetensors", network)
    assert again.config == state.config
    for name, tensor in state.tensors.items():
        torch.testing.assert_close(again.tensors[name], tensor)
    torch.testing.assert_close(output(network, again), output(network, state))


@pytest.mark.parametrize("alpha", [None, 6.0])
@pytest.mark.parametrize("names", ["kohya", "peft"])
def test_other_tools_files_act_as_elsewhere(names, alpha, network, tmp_path):
    """At scale alpha / rank where the file says alpha, else at scale 1."""
    state = trained(network, alpha=3.0 if alpha is None else alpha)  # rank 3
    tensors = kohya_names(state.tensors) if names == "kohya" else peft_names(state.tensors, "transformer")
    if alpha is not None:
        modules = {k.split(".lora")[0] for k in tensors}
        tensors |= {f"{module}.alpha": torch.tensor(alpha) for module in modules}
    save_file(tensors, tmp_path / "a.safetensors")
    again = read_lora(tmp_path / "a.safetensors", network)
    assert (again.config.rank, again.config.alpha) == (3, 3.0)
    torch.testing.assert_close(output(network, again), output(network, state))


def test_files_that_do_not_fit_are_refused_in_one_line(network, tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match="must be a readable safetensors file"):
        read_lora(path, network)
    save_file({"transformer.9.to_q.lora_A.weight": torch.ones(2, 6)}, path)
    with pytest.raises(ValueError, match=r"must fit the model, but has transformer\.9\.to_q"):
        read_lora(path, network)
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="must hold adapter weights, got weight; it is no LoRA"):
        read_lora(path, network)
    Path(path).write_bytes(b"junk")
    with pytest.raises(ValueError, match="must be a readable safetensors file"):
        read_lora(path, network)
