"""Activations kept elsewhere: the same gradients, each tensor once, weights not at all."""

import torch

from rollout_trainer.training.trainer.offload import SMALL, in_main_memory, kept_elsewhere, storages
from rollout_trainer.training.trainer.trainer import Trainer


def gradients(weights_kept, keep):
    torch.manual_seed(0)
    frozen = torch.nn.Linear(256, 256).requires_grad_(False)
    adapters = [torch.nn.Linear(256, 256) for _ in range(3)]
    x = torch.randn(512, 256, requires_grad=True)
    weights = storages(list(frozen.parameters())) if weights_kept else set()
    with kept_elsewhere(weights, keep):
        hidden = frozen(x)
        y = sum(adapter(hidden).tanh() for adapter in adapters)
    y.square().mean().backward()
    return [x.grad, *(a.weight.grad for a in adapters)]


def copying(log):
    def keep(tensor):
        log.append(tensor.nbytes)
        copy = tensor.clone()
        return lambda: copy

    return keep


def test_gradients_are_those_of_a_usual_pass():
    usual = gradients(True, in_main_memory)
    log = []
    for a, b in zip(usual, gradients(True, copying(log)), strict=True):
        assert torch.equal(a, b)
    assert log


def test_a_tensor_that_three_layers_read_is_kept_once_and_no_weight_is():
    log, with_weights = [], []
    gradients(True, copying(log))
    gradients(False, copying(with_weights))
    size = 512 * 256 * 4
    # The input of the three adapters and their three outputs; not the frozen weight (as large as SMALL).
    assert log.count(size) == 4
    assert SMALL <= 256 * 256 * 4
    assert len(with_weights) >= len(log)


def test_an_address_that_is_used_again_is_not_taken_for_the_same_tensor():
    kept = []

    def keep(tensor):
        copy = tensor.clone()
        kept.append(copy)
        return lambda: copy

    weight = torch.ones((), requires_grad=True)
    with kept_elsewhere(set(), keep):
        total = torch.zeros(())
        for i in range(8):
            total = total + (torch.full((512, 256), float(i)) * weight).sum()
    total.backward()
    assert weight.grad == sum(range(8)) * 512 * 256


def test_a_run_that_offloads_is_bit_for_bit_the_run_that_does_not(toy_source, make_data, make_config):
    states = []
    for offload in (False, True):
        with Trainer(toy_source, make_data(), make_config(activation_offload=offload)) as trainer:
            for _ in range(4):
                trainer.step()
            states.append(trainer.adapter.state().tensors)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
