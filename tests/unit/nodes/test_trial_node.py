"""The node Trial: its lines of text, and a whole trial in a graph that goes on where it was."""

from dataclasses import replace

import pytest
import torch

from rollout_trainer.host.standalone.host import StandaloneHost, installed
from rollout_trainer.nodes.arms import PLAIN, WAYS, RolloutTrial, arms_of, scales_of
from rollout_trainer.training.models.source import LoadedModel
from rollout_trainer.training.objective.config import RolloutConfig

CONNECTED = RolloutConfig(max_step_offset=2, probability=0.3)


def test_a_line_is_a_name_and_what_it_changes(make_config):
    base = make_config(rollout=PLAIN)
    text = "plain\n\n guided \nconnected: probability=1\nsmall: rank=1, lora.alpha=3, lr=5e-4, kind=lora\nown: beta1=2"
    arms = arms_of(text, base, CONNECTED)
    assert list(arms) == ["plain", "guided", "connected", "small", "own"]
    assert arms["plain"] == base
    assert arms["guided"] == replace(base, rollout=WAYS["guided"])
    assert arms["connected"].rollout == replace(CONNECTED, probability=1.0)
    assert (arms["small"].lora.rank, arms["small"].lora.alpha, arms["small"].optimizer.lr) == (1, 3.0, 5e-4)
    assert arms["own"].rollout.reflexflow.beta1 == 2.0  # the first part that has it
    assert arms_of("a: optimizer.beta1=0.5", base, None)["a"].optimizer.beta1 == 0.5
    assert arms_of("a: gradient_checkpointing=TRUE", base, None)["a"].gradient_checkpointing is True


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("plain\nplain", "arms must have different names, got 'plain' again"),
        (": rank=1", "arms must have different names"),
        ("connected", "arms must not name connected, got it with nothing at scheduled_sampling"),
        ("a: rnak=1", "arms must set known settings as name=value, got 'rnak=1'; known: .*rank"),
        ("a: rank", "arms must set known settings as name=value, got 'rank'"),
        ("a: lora=1", "arms must set known settings as name=value, got 'lora=1'"),
        ("a: lora.steps=1", "arms must set known settings"),
        ("a: rank=much", "arms must give numbers to numbers and true or false to switches, got 'rank=much'"),
        ("a: gradient_checkpointing=1", "arms must give numbers to numbers and true or false to switches"),
        ("a: rank=true", "arms must give numbers to numbers"),
        ("a: target=best", "target must be one of"),
    ],
)
def test_a_line_that_cannot_be_is_refused_by_name(line, message, make_config):
    with pytest.raises(ValueError, match=message):
        arms_of(line, make_config(), None)


def test_scales_are_numbers():
    assert scales_of("1, 2.5 3") == (1.0, 2.5, 3.0)
    for text in ("", "one", "-1, 2"):
        with pytest.raises(ValueError, match="cfg must be numbers of 0 or more"):
            scales_of(text)


@pytest.fixture
def trial(make_source, make_data, tmp_path):
    """Execute the node, with other inputs if told so."""

    def run(**changes):
        with torch.inference_mode(False):
            source = make_source("flow")
            source.decode_latents = source.preview_latents
            data = make_data(16)
        inputs = {
            "model": LoadedModel(source), "data": data, "arms": "plain\nmixflow", "seeds": 2, "steps": 8,
            "batch_size": 4, "caption_dropout": 0.1, "autocast": "off", "gradient_checkpointing": False,
            "hold_out": 0.3, "equal": "compute", "cfg": "1", "trial_name": "mine",
        }  # fmt: skip
        with torch.inference_mode(), installed(StandaloneHost(tmp_path)):
            return RolloutTrial.execute(**inputs | changes), source

    return run


def test_a_trial_in_the_graph_goes_on_where_it_was(trial, tmp_path):
    (table, plot, grid, best, model), source = (out := trial())[0].result, out[1]
    assert "mixflow against plain, distance of drawn pictures to held-out ones at CFG 1" in table
    assert plot.shape[-1] == grid.shape[-1] == 3
    assert best.folder.path.name.startswith(("plain-", "mixflow-"))
    assert model.adapter is not None
    assert source.calls
    again, fresh = trial()
    assert again.result[0] == table
    assert 4 not in fresh.calls  # nothing is trained again
    folders = {path.name for path in tmp_path.rglob("mine-*") if path.is_dir()}
    trial(seeds=1)  # a part of the same trial
    assert {path.name for path in tmp_path.rglob("mine-*") if path.is_dir()} == folders
    trial(steps=6, seeds=1)  # another one
    assert len({path.name for path in tmp_path.rglob("mine-*") if path.is_dir()}) == 2


def test_arms_may_be_too_few_and_the_model_must_be_fresh(trial, make_source):
    with pytest.raises(ValueError, match="arms must be 2 to 12, got 1"):
        trial(arms="plain")
