"""The command `trial`: arms are a workflow and changes of it; what is wrong is said before anything is trained."""

import json

import pytest
import torch

from rollout_trainer import nodes as pack
from rollout_trainer.__main__ import main
from rollout_trainer.host import io
from rollout_trainer.nodes import sockets
from rollout_trainer.nodes.trial import ArmSettings
from rollout_trainer.training.models.source import LoadedModel

GRAPH = {
    "1": {"class_type": "ToyModel", "inputs": {}},
    "2": {"class_type": "RolloutScheduledSampling", "inputs": {"max_step_offset": 3, "steps_per_trajectory": 20}},
    "3": {"class_type": "RolloutLoRASettings", "inputs": {"rank": 2, "alpha": 2.0}},
    "4": {
        "class_type": "RolloutTrainLoRA",
        "inputs": {
            "model": ["1", 0], "data": ["1", 1], "scheduled_sampling": ["2", 0], "lora": ["3", 0],
            "steps": 8, "batch_size": 4, "validate_every": 2, "hold_out": 0.3, "patience": 2,
        },
    },
    "5": {"class_type": "RolloutSaveLoRA", "inputs": {"run": ["4", 0]}},
}  # fmt: skip
PLAIN = "plain=RolloutScheduledSampling.max_step_offset=0"
MIXFLOW = "mixflow = RolloutScheduledSampling.target=mixflow; RolloutScheduledSampling.probability=1"


@pytest.fixture
def trial(tmp_path, monkeypatch, capsys, make_source, make_data):
    """Run `trial` on the graph; its code, what it printed, and the folder."""
    monkeypatch.chdir(tmp_path)

    class ToyModel(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            outputs = [sockets.Model.Output(), sockets.Data.Output()]
            return io.Schema(
                node_id="ToyModel", display_name="Toy", category="toy", inputs=[], outputs=outputs
            )

        @classmethod
        def execute(cls):
            with torch.inference_mode(False):  # as nodes that load a model do
                source = make_source("flow")
                source.decode_latents = source.preview_latents
                return io.NodeOutput(LoadedModel(source), make_data(16))

    def run(*arguments, graph=GRAPH):
        (tmp_path / "graph.json").write_text(json.dumps(graph))
        code = main(["trial", "graph.json", *arguments], nodes=[ToyModel, *pack.NODES])
        captured = capsys.readouterr()
        return code, captured.out, captured.err, tmp_path / "out" / "trial"

    return run


def test_a_trial_of_a_workflow(trial):
    code, printed, told, folder = trial("--arms", PLAIN, "rolled", MIXFLOW, "--seeds", "2", "--cfg", "1")
    assert code == 0
    assert printed.startswith("| arm (seeds) | step | trained | planned | evaluations | distance@1 | loss |")
    assert "| plain (2) |" in printed
    assert "mixflow against plain, distance of drawn pictures to held-out ones at CFG 1" in printed
    assert told.count("seed 1:") >= 3
    arms = json.loads((folder / "trial.json").read_text())["arms"]
    assert [own["steps"] for own in arms.values()] == [
        8,
        6,
        8,
    ]  # rollouts cost 0.75 forwards, mixflow nothing
    assert [own["rollout"]["target"] for own in arms.values()] == ["residual", "residual", "mixflow"]
    assert {"trial.md", "trial.png", "pictures.png"} <= {path.name for path in folder.iterdir()}
    again = trial("--arms", PLAIN, "rolled", MIXFLOW, "--seeds", "2", "--cfg", "1")
    assert again[1] == printed
    assert "seed" not in again[2].replace("seeds", "")  # nothing was left to run


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        (["a", "a"], "--arms must have different names, got a, a"),
        (["a"], "arms must be 2 to 12, got 1"),
        (["a", "b=Nobody.steps=3"], "--set Nobody.steps=3: 'Nobody' must be a node's id, title or class"),
        (["a", "b=RolloutTrainLoRA.steps=no"], "steps must be"),
        (
            ["a", "b=RolloutTrainLoRA.hold_out=0.1;RolloutTrainLoRA.validate_every=0"],
            "hold_out must be 0 while",
        ),
    ],
)
def test_what_is_wrong_is_said_and_nothing_trained(arms, message, trial):
    code, printed, told, folder = trial("--arms", *arms)
    assert (code, printed) == (2, "")
    assert message in told
    assert not folder.exists() or not list(folder.glob("*/state-*"))


def test_a_workflow_without_training_cannot_be_tried(trial):
    graph = {id: node for id, node in GRAPH.items() if id < "4"}
    code, _, told, _ = trial("--arms", "a", "b", graph=graph)
    assert code == 2
    assert "a trial needs a workflow with one Train LoRA node, got 0" in told


def test_arms_are_read():
    assert ArmSettings.parsed("as it is") == ArmSettings("as it is", ())
    assert ArmSettings.parsed(MIXFLOW).settings == (
        "RolloutScheduledSampling.target=mixflow", "RolloutScheduledSampling.probability=1",
    )  # fmt: skip
