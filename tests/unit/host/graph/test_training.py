"""What of a workflow other ranks run."""

from pathlib import Path

import pytest

from rollout_trainer.__main__ import _catalog
from rollout_trainer.host.graph.normal import Link
from rollout_trainer.host.graph.reading import parse, read_file
from rollout_trainer.host.graph.training import training_alone
from rollout_trainer.host.graph.validate import execution_order, problems

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def catalog():
    return _catalog(None)


def test_ranks_that_do_not_save_run_nothing_that_saves(catalog):
    graph = parse(read_file(ROOT / "workflows" / "quickstart.json"), catalog)
    alone = training_alone(graph, catalog)
    assert problems(alone, catalog) == []
    classes = [node.class_type for node in execution_order(alone, catalog)]
    assert sorted(classes) == [
        "PreviewAny", "RolloutDatasetFromFolder", "RolloutEncodeDataset", "RolloutLoRASettings",
        "RolloutLoadDiffusers", "RolloutOptimizerSettings", "RolloutScheduledSampling", "RolloutTrainLoRA",
    ]  # fmt: skip
    shown = next(node for node in alone.nodes.values() if node.class_type == "PreviewAny")
    assert shown.inputs == {"source": Link("8", 2)}


def test_every_stage_is_run_and_the_last_one_is_shown(catalog):
    graph = parse(read_file(ROOT / "workflows" / "staged-training.json"), catalog)
    alone = training_alone(graph, catalog)
    assert problems(alone, catalog) == []
    trains = {"RolloutInitTraining", "RolloutTrainSteps", "RolloutTrainLoRA", "RolloutResumeTraining"}
    assert [n for n in alone.nodes.values() if n.class_type in trains] == [
        n for n in graph.nodes.values() if n.class_type in trains
    ]
    for node in alone.nodes.values():
        if node.class_type == "PreviewAny":
            assert alone.nodes[node.inputs["source"].node].class_type == "RolloutTrainSteps"


def test_a_workflow_that_trains_nothing_is_run_as_it_is(catalog):
    graph = parse(read_file(ROOT / "workflows" / "quickstart.json"), catalog)
    no_training = type(graph)({id: graph.nodes[id] for id in ("1", "18")})
    assert training_alone(no_training, catalog) is no_training
