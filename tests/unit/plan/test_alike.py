"""Of many equal blocks four are run, and the figures are those of all of them, or all of them are run."""

import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rollout_trainer.training.conditioning import joined
from rollout_trainer.training.data.dataset import Batch
from rollout_trainer.training.lora.adapter import LoRAConfig
from rollout_trainer.training.models.hosted import HostModel
from rollout_trainer.training.pictures.sampling import Prompts
from rollout_trainer.training.plan import needs
from rollout_trainer.training.plan.alike import UnevenError, shortened
from rollout_trainer.training.plan.memory import SWITCHES
from rollout_trainer.training.plan.needs import step_needs
from rollout_trainer.training.trainer.config import TrainConfig
from rollout_trainer.training.trainer.optim import OptimizerConfig

ROOT = Path(__file__).resolve().parents[3]
WAYS = pytest.mark.parametrize("switches", SWITCHES, ids=["plain", "recomputed", "elsewhere"])


@pytest.fixture(scope="module")
def real_models():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import real_models

        yield real_models
        sys.modules.pop("real_models", None)


def short_and_whole(source, batch, config):
    """What is needed as it is planned, and by all blocks; how many calls of layers the first took of the other's."""
    found = []
    for ask in (step_needs, needs._step_needs):
        calls = []
        hook = nn.modules.module.register_module_forward_pre_hook(lambda *_, own=calls: own.append(1))
        try:
            found.append((ask(source, batch, config), len(calls)))
        finally:
            hook.remove()
    (few, calls_of_few), (whole, calls_of_all) = found
    return few, whole, calls_of_few / calls_of_all


def config_of(switches=(), rank=4, targets=("attn", "lin"), **changes):
    values = {"lora": LoRAConfig(rank=rank, targets=targets), "batch_size": 1} | changes
    return replace(TrainConfig(**values), **dict.fromkeys(switches, True))


# --- networks of diffusers ----------------------------------------------------------------------------------

NARROW = {
    "Klein 4B": ({"num_attention_heads": 2, "joint_attention_dim": 64, "num_layers": 6, "num_single_layers": 7},
                 {"context": (16, 64)}),
    "Flux 12B": ({"num_attention_heads": 2, "joint_attention_dim": 64, "num_layers": 7, "num_single_layers": 6,
                  "pooled_projection_dim": 32, "axes_dims_rope": (16, 56, 56)}, {"context": (16, 64), "pooled": (32,)}),
    "Qwen-Image 20B": ({"num_attention_heads": 2, "joint_attention_dim": 64, "num_layers": 7}, {"context": (16, 64)}),
    "Wan 2.2 14B, 1 frame": ({"num_attention_heads": 2, "ffn_dim": 512, "num_layers": 7, "text_dim": 64},
                             {"context": (16, 64)}),
    "SD3.5 large": ({"num_attention_heads": 2, "joint_attention_dim": 64, "num_layers": 7, "attention_head_dim": 64,
                     "caption_projection_dim": 128, "pooled_projection_dim": 32},
                    {"context": (16, 64), "pooled": (32,)}),
}  # fmt: skip


def narrow(real_models, name):
    """Of a model of many blocks, one that is as deep and small; with real weights."""
    config, cond = NARROW[name]
    model = real_models.MODELS[name]
    model = replace(model, config=model.config | config, cond=cond)
    return model, model.random("cpu")


@pytest.mark.parametrize("name", NARROW)
def test_few_blocks_tell_what_all_need(real_models, name):
    model, source = narrow(real_models, name)
    config = config_of(SWITCHES[1], targets=model.targets)
    few, whole, share = short_and_whole(source, model.batch(256), config)
    assert few == whole
    assert share < 0.8


@WAYS
def test_networks_of_shapes_too(real_models, switches):
    model, _ = narrow(real_models, "Klein 4B")
    source = model.on_paper()
    with real_models.adapters_of_shapes():
        few, whole, share = short_and_whole(
            source, model.batch(512), config_of(switches, targets=model.targets)
        )
    assert few == whole
    assert share < 0.8


@pytest.mark.parametrize("targets", [
    (r"transformer_blocks\.3\.attn\.to_q", r"attn\.to_k"),  # it parts rows into some that are too short
    (r"^transformer_blocks\.6\.attn", r"single_transformer_blocks\.0\.attn"),  # of few blocks there is no sixth
])  # fmt: skip
def test_blocks_with_other_adapters_are_others(real_models, targets):
    model, source = narrow(real_models, "Flux 12B")
    config = config_of(targets=targets)
    assert step_needs(source, model.batch(64), config) == needs._step_needs(source, model.batch(64), config)


def test_what_is_drawn_is_the_same(real_models, monkeypatch):
    model, source = narrow(real_models, "Klein 4B")
    cond = {name: torch.randn(1, *shape) for name, shape in model.cond.items()}
    drawing = SimpleNamespace(
        prompts=Prompts(("a cat",), cfg=2.0), cond=cond, shape=(128, 16, 16), at_once=lambda *_: 2
    )
    asked = []
    config = config_of(targets=model.targets)
    short = needs.drawing_needs(source, model.batch(64), config, drawing)
    monkeypatch.setattr(needs, "shortened", lambda *_: asked.append(1) or nullcontext(needs.Rows()))
    assert needs.drawing_needs(source, model.batch(64), config, drawing) == short > 0
    assert asked == [1]


# --- networks of a host -------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width=32, keeps=1, number=0):
        super().__init__()
        self.attn = nn.Linear(width, width)
        self.lin = nn.Linear(width, width)
        self._keeps, self.number = keeps, number

    def forward(self, x, told):
        inner = self.attn(x) * told
        for _ in range(self._keeps):
            inner = torch.sigmoid(inner)
        x += self.lin(inner)  # as hosts write it
        return x


class Network(nn.Module):
    """Blocks after each other, each of which overwrites what it reads and reads `told`."""

    def __init__(self, blocks, walk=None):
        super().__init__()
        self.into, self.blocks = nn.Linear(4, 32), nn.ModuleList(blocks)
        self.walk = walk or (lambda blocks, x, told: [x := block(x, told) for block in blocks][-1])

    def forward(self, x):
        hidden = self.into(x)
        return self.walk(self.blocks, hidden, torch.sigmoid(hidden))[..., :4]


def hosted(network):
    """A MODEL around a network."""
    network = network.requires_grad_(False)
    host = SimpleNamespace(
        name="Stand-in", prediction="flow", module=network, device=torch.device("cpu"), dtype=torch.float32,
        flow_sigma=lambda u: u, opened=lambda training: nullcontext(), loss_weight=lambda sigma: None,
        on_paper=nullcontext, frames=False, latent_channels=4,
        denoised=lambda x, sigma, rows: network(x.movedim(1, -1)).movedim(-1, 1),
    )  # fmt: skip
    return HostModel(host)


def batch(n=2, side=16):
    return Batch(
        torch.randn(n, 4, side, side), joined([{"text": torch.zeros(1, 2)}] * n), None, torch.arange(n)
    )


@WAYS
def test_few_blocks_of_a_host_tell_what_all_need(switches):
    source = hosted(Network([Block() for _ in range(12)]))
    few, whole, share = short_and_whole(source, batch(), config_of(switches))
    assert few == whole
    assert share < 0.6


@pytest.mark.parametrize("changes", [
    {"rank": 64}, {"lora": LoRAConfig(rank=4, kind="dora", targets=("attn",))},
    {"lora": LoRAConfig(rank=4, dropout=0.1, targets=("attn",))}, {"accumulation": 2, "ema_decay": 0.9},
    {"optimizer": OptimizerConfig(name="adafactor")}, {"optimizer": OptimizerConfig(name="adamw8bit")},
    {"autocast": "bf16"}, {"targets": ("into",)}, {"targets": ("into", "lin")},
], ids=lambda c: "-".join(map(str, c.values()))[:40])  # fmt: skip
@pytest.mark.parametrize("switches", SWITCHES[:2], ids=["plain", "recomputed"])
def test_whatever_the_settings(changes, switches):
    source = hosted(Network([Block() for _ in range(9)]))
    few, whole, _ = short_and_whole(source, batch(), config_of(switches, **changes))
    assert few == whole


def test_where_gradients_outweigh_what_is_kept_the_highest_moment_of_many_blocks_is_another():
    def wide_end(blocks, x, told):
        for block in blocks:
            x = block(x, told)
        return x + x.repeat(40, 1, 1, 1).sigmoid().mean(0, keepdim=True)

    found = []
    for depth in (5, 6, 60):
        source = hosted(Network([Block() for _ in range(depth)], wide_end))
        few, whole, _ = short_and_whole(source, batch(1, 8), config_of(SWITCHES[1], rank=64))
        assert few == whole
        found.append(whole.training)
    assert found[2] > 1.1 * (found[0] + 55 * (found[1] - found[0]))  # in proportion it would be too low


def of_blocks(number, **keeps):
    return [Block(keeps=keeps.get(f"of_{i}", 1)) for i in range(number)]


def counted(blocks, x, told):
    for i in range(9):
        x = blocks[i](x, told)
    return x


def in_turn(blocks, x, told):
    for block in [*blocks[::2], *blocks[1::2]]:
        x = block(x, told)
    return x


def kept_by_the_network(blocks, x, told):
    blocks.kept = []
    for block in blocks:
        x = block(x, told)
        blocks.kept.append(x.detach().clone())
    return x


def one_alone(blocks, x, told):
    return blocks[0](x, told)


UNEVEN = {
    "a block does more": (lambda: Network(of_blocks(9, of_2=3)), "a block does"),
    "blocks are counted": (lambda: Network(of_blocks(9), counted), "index 4 is out of range"),
    "another order": (lambda: Network(of_blocks(9), in_turn), "block 2 follows block 0"),
    "one alone is called": (lambda: Network(of_blocks(9), one_alone), "0 passes forwards"),
}


@WAYS
def test_what_a_network_keeps_of_each_block_counts(switches):
    source = hosted(Network(of_blocks(9), kept_by_the_network))
    few, whole, share = short_and_whole(source, batch(), config_of(switches))
    assert few == whole
    assert share < 0.7


@pytest.mark.parametrize(("network", "told"), UNEVEN.values(), ids=UNEVEN)
@pytest.mark.parametrize("switches", SWITCHES[:2], ids=["plain", "recomputed"])
def test_where_blocks_do_not_do_the_same_all_are_run(network, told, switches, caplog):
    source = hosted(network())
    config = config_of(switches)
    with pytest.raises((UnevenError, IndexError), match=told):
        needs._step_needs(source, batch(), config, short=True)
    with caplog.at_level("DEBUG", needs.logger.name):
        assert step_needs(source, batch(), config) == needs._step_needs(source, batch(), config)
    assert "the plan runs the whole network of Stand-in" in caplog.text


def test_blocks_of_other_settings_or_sizes_or_kinds_are_others():
    numbers = Network([Block(number=i) for i in range(9)])
    kinds = Network([nn.Sequential(Block()) if i % 2 else Block() for i in range(9)])
    hooked = Network(of_blocks(9))
    hooked.blocks[4].register_forward_hook(lambda *_: None)
    half = Network(of_blocks(9))
    half.blocks[4].lin.to(torch.bfloat16)
    for network in (numbers, kinds, hooked, half):
        before = list(network.blocks)
        with shortened(network, lambda _: []) as rows:
            assert list(network.blocks) == before
            assert rows.rows == []


def test_each_row_of_a_list_is_shortened_and_all_is_as_before():
    network = Network([*of_blocks(6), Block(number=1), *[Block(number=2) for _ in range(8)]])
    before, hooks = list(network.blocks), [len(b._forward_hooks) for b in network.blocks]
    with shortened(network, lambda _: []) as rows:
        assert list(network.blocks) == [before[i] for i in (0, 1, 2, 5, 6, 7, 8, 9, 14)]
        assert [row.missing for row in rows.rows] == [2, 4]
    assert list(network.blocks) == before
    assert [name for name, _ in network.blocks.named_children()] == [str(i) for i in range(15)]
    assert [len(b._forward_hooks) for b in network.blocks] == hooks


@WAYS
def test_rows_inside_of_rows(switches):
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(of_blocks(6))

        def forward(self, x, told):
            for part in self.parts:
                x = part(x, told)
            return x

    source = hosted(Network([Stack() for _ in range(6)]))
    few, whole, share = short_and_whole(source, batch(), config_of(switches))
    assert few == whole
    assert share < (1.5 if switches == () else 0.5)


def test_a_model_whose_blocks_are_fetched_is_run_whole():
    source = hosted(Network(of_blocks(9)))
    source.swap = object()
    asked = []
    needs.in_few_blocks(source, lambda short: asked.append(short))
    assert asked == [False]
