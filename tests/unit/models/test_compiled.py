"""Compiled blocks: the same LoRA, no compiling in mid-run, the network as it was."""

import logging
import shutil
from contextlib import ExitStack

import pytest
import torch
from everything import same
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from rollout_trainer.samplers import FlowSchedule
from rollout_trainer.training.lora.adapter import LoRAConfig
from rollout_trainer.training.models.compiled import Regions
from rollout_trainer.training.models.differentiable import recomputed
from rollout_trainer.training.models.source import Denoiser
from rollout_trainer.training.objective.config import ReflexFlowConfig, RolloutConfig
from rollout_trainer.training.trainer import trainer as trainer_module
from rollout_trainer.training.trainer.trainer import Trainer

ROLLOUTS = RolloutConfig(max_step_offset=4, probability=0.7, reflexflow=ReflexFlowConfig("on"))


class Block(nn.Module):
    """A residual block with a text vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x, text):
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm(x) + text)))


class Blocks(nn.Module):
    """A network of equal blocks over [B, 4, h, w]."""

    def __init__(self, depth: int = 3, width: int = 8) -> None:
        super().__init__()
        self.inp, self.out, self.text = nn.Linear(4, width), nn.Linear(width, 4), nn.Linear(6, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))

    def forward(self, x, sigma, context):
        hidden = self.inp(x.movedim(1, -1)) + sigma.reshape(-1, 1, 1, 1)
        text = self.text(context.mean(1))[:, None, None]
        for block in self.blocks:
            hidden = block(hidden, text)
        return self.out(hidden).movedim(-1, 1)


class BlockDenoiser(Denoiser):
    prediction = "flow"
    schedule = FlowSchedule(3.0)

    def __init__(self, module):
        self.module = module

    def opened(self, training=False, checkpointing=False, regions=None):
        stack = ExitStack()
        if regions is not None:
            stack.enter_context(regions.attached())
        if checkpointing:
            stack.enter_context(recomputed(self.module))
        return stack

    def predict(self, x, sigma, cond):
        return self.module(x, sigma, cond["context"])


class BlockSource:
    name = fingerprint = encoder_fingerprint = "blocks"
    lora_names = "comfyui"
    device = torch.device("cpu")
    dtype = torch.float32
    prediction = "flow"
    schedule = BlockDenoiser.schedule
    default_lora_targets = (r"blocks\.\d+\.(up|down)$",)

    def __init__(self, depth=3):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.module = Blocks(depth).requires_grad_(False).eval()

    def denoiser(self, dtype=None):
        return BlockDenoiser(self.module)


@pytest.fixture
def use(monkeypatch):
    """``use(backend)``: what trainers compile with from now on."""

    def using(backend):
        monkeypatch.setattr(trainer_module, "Regions", lambda network: Regions(network, backend))
        return backend

    return using


@pytest.fixture
def trained(make_data, make_config):
    """``trained(steps, **changes)``: the weights after training, its trainer and its network."""

    def train(steps=6, lora=None, watch=None, depth=3, **changes):
        source = BlockSource(depth)
        config = make_config(lora=LoRAConfig(rank=2, alpha=2.0, **(lora or {})), **changes)
        with Trainer(source, make_data(sizes=(6, 4)), config) as trainer:
            for _ in range(steps):
                trainer.step()
                if watch is not None:
                    watch(trainer)
            weights = [p.detach().clone() for p in trainer.parameters]
        return weights, trainer, source.module

    return train


def near(a, b):
    """Weights equal up to the order of sums."""
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "changes",
    [
        {"rollout": ROLLOUTS, "caption_dropout": 0.3, "accumulation": 2},
        {"rollout": ROLLOUTS, "lora": {"dropout": 0.3}},
        {"gradient_checkpointing": True},
    ],
    ids=["rollouts", "dropout", "checkpointing"],
)
def test_the_same_lora_with_and_without(use, trained, changes):
    counter = use(CompileCounterWithBackend("eager"))
    plain, _, _ = trained(**changes)
    compiled, trainer, _ = trained(compile=True, **changes)
    assert "3 blocks of Blocks compiled" in trainer.regions.told
    assert counter.frame_count > 0
    assert all(torch.equal(a, b) for a, b in zip(plain, compiled, strict=True))


def test_gradients_through_what_was_traced(use, trained):
    use("aot_eager")
    plain, _, _ = trained(rollout=ROLLOUTS)
    compiled, trainer, _ = trained(compile=True, rollout=ROLLOUTS)
    assert "3 blocks of Blocks compiled" in trainer.regions.told
    near(plain, compiled)


def test_nothing_is_compiled_in_mid_run_whatever_the_batch(use, trained):
    """Rollouts of other lengths and pictures of other sizes run through what was compiled before the first step."""
    counter = use(CompileCounterWithBackend("eager"))
    counts = []
    trained(40, rollout=ROLLOUTS, compile=True, watch=lambda _: counts.append(counter.frame_count))
    assert counts[20:] == counts[20:21] * 20
    assert counts[0] == counts[-1]


@pytest.mark.parametrize("kind", ["lora", "loha"])
def test_blocks_of_one_kind_share_what_was_compiled(kind, use, trained):
    """A network of sixty blocks is compiled in the time of a few, and not given up at a limit of the compiler's."""
    counts = []
    for depth in (2, 5):
        counter = use(CompileCounterWithBackend("eager"))
        _, trainer, _ = trained(2, depth=depth, compile=True, rollout=ROLLOUTS, lora={"kind": kind})
        assert f"{depth} blocks of Blocks compiled" in trainer.regions.told
        counts.append(counter.frame_count)
    assert counts[0] == counts[1] > 0


def test_off_leaves_the_compiler_alone(trained, monkeypatch):
    def refused(*_args, **_options):
        raise AssertionError("compiled")

    monkeypatch.setattr(torch, "compile", refused)
    _, trainer, _ = trained(1)
    assert trainer.regions is None
    assert trainer.compile() == ""


def test_the_network_is_as_it_was_after(use, trained):
    use("eager")
    before = BlockSource().module
    _, trainer, network = trained(2, compile=True, gradient_checkpointing=True)
    assert all("forward" not in vars(block) for block in network.blocks)
    x, sigma, context = torch.randn(2, 4, 6, 6), torch.rand(2), torch.randn(2, 3, 6)
    assert torch.equal(network(x, sigma, context), before(x, sigma, context))
    assert not trainer.regions.active


def test_compiling_leaves_no_trace_in_the_run(use, trained, make_config, make_data):
    """No gradient, no draw, no count: the run begins as if nothing had been computed."""
    use("eager")
    config = make_config(compile=True, lora=LoRAConfig(rank=2, alpha=2.0), rollout=ROLLOUTS)
    with Trainer(BlockSource(), make_data(), config) as trainer:
        before, drawn = trainer.state(), torch.random.get_rng_state()
        trainer.compile()
        after = trainer.state()
        assert all(p.grad is None for p in trainer.parameters)
    same(before, after)
    assert before.values == after.values
    assert torch.equal(torch.random.get_rng_state(), drawn)


def test_a_backend_that_fails_is_one_line_and_the_training_goes_on(use, trained, caplog):
    def broken(_graph, _inputs):
        raise RuntimeError("no working C++ compiler\nfound: cl.exe")

    use(broken)
    plain, _, _ = trained(rollout=ROLLOUTS)
    with caplog.at_level(logging.WARNING):
        went_on, trainer, network = trained(rollout=ROLLOUTS, compile=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, went_on, strict=True))
    lines = [r.getMessage() for r in caplog.records if "compile" in r.getMessage()]
    assert len(lines) == 1
    assert "\n" not in lines[0]
    assert lines[0].startswith("trains without compile: the blocks of Blocks cannot be compiled")
    assert "no working C++ compiler found: cl.exe" in lines[0]
    assert trainer.regions.told == lines[0]
    assert all("forward" not in vars(block) for block in network.blocks)


def test_a_backend_that_fails_in_mid_run_does_not_end_it(use, trained, caplog):
    """Adapter dropout is another code, first met in a step."""
    graphs = []

    def later(graph, _inputs):
        graphs.append(graph)
        if len(graphs) > 4:
            raise RuntimeError("cannot")
        return graph.forward

    use(later)
    changes = {"lora": {"dropout": 0.3}}
    plain, _, _ = trained(**changes)
    with caplog.at_level(logging.WARNING):
        went_on, trainer, _ = trained(compile=True, **changes)
    assert "cannot be compiled" in trainer.regions.told
    assert all(torch.equal(a, b) for a, b in zip(plain, went_on, strict=True))


def test_a_block_that_wrote_into_its_input_is_not_computed_twice():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, x):
            return x

    network = nn.ModuleList([Writes()])
    regions = Regions(nn.Sequential(network))

    def half(_block, x):
        x.add_(1)
        raise torch._dynamo.exc.TorchDynamoException("broke off")

    forward = regions.switched(regions.blocks[0], half)
    regions.active = True
    with pytest.raises(torch._dynamo.exc.TorchDynamoException):
        forward(torch.zeros(2))


def test_a_network_without_blocks_says_so(make_config, make_data, toy_source):
    regions = Regions(toy_source.module)
    with regions.attached():
        assert regions.begin([]) == "nothing to compile: ToyNetwork has no repeated blocks"


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_the_default_backend_trains_the_same_lora(trained):
    plain, _, _ = trained(3)
    compiled, trainer, _ = trained(3, compile=True)
    assert "3 blocks of Blocks compiled" in trainer.regions.told
    near(plain, compiled)
