"""TensorBoard's event files, read back with TensorBoard's own reader."""

import importlib.util
import math
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rollout_trainer.nodes.train import RolloutTrainLoRA
from rollout_trainer.training.objective.config import RolloutConfig
from rollout_trainer.training.pictures.strip import write_samples
from rollout_trainer.training.runs import board as boards
from rollout_trainer.training.runs.board import board_of
from rollout_trainer.training.runs.run import start, train

SETTINGS = {
    "validate_every": 2,
    "preview_every": 2,
    "rollout": RolloutConfig(max_step_offset=2, probability=1.0),
}


def trained(run, steps, wanted=True):
    """Train on with event files; the new handle."""
    with board_of(run, wanted) as board:
        return train(run, steps, board.add if board is not None else None)


@pytest.fixture
def begin(make_data, make_config, toy_source, tmp_path):
    def begin(name):
        return start(tmp_path, name, toy_source, make_data(), make_config(**SETTINGS), make_data())

    return begin


def events(run):
    """All that the run's event files say."""
    found = EventAccumulator(str(run.folder.events_folder), size_guidance={"images": 0, "scalars": 0})
    found.Reload()
    return found


def curve(found, tag):
    """Steps and values of a curve."""
    scalars = found.Scalars(tag)
    return [scalar.step for scalar in scalars], [scalar.value for scalar in scalars]


def test_curves_are_those_of_the_history(begin):
    run = trained(begin("a"), 5)
    found, history = events(run), run.history.columns
    for column, tag in boards.TAGS.items():
        measured = [(i + 1, v) for i, v in enumerate(history.get(column, [])) if math.isfinite(v)]
        if measured:
            steps, values = curve(found, tag)
            assert steps == [step for step, _ in measured]
            assert values == pytest.approx([value for _, value in measured], rel=1e-6)
    named = {"loss/total", "loss/smoothed", "loss/held out", "training/learning rate", "rollout/length"}
    assert named | {"exposure bias/drift", "exposure bias/floor"} <= set(found.Tags()["scalars"])
    assert curve(found, "loss/held out")[0] == [2, 4]
    assert curve(found, "loss/smoothed")[1][-1] == pytest.approx(sum(history["total"]) / 5, rel=1e-6)
    assert [image.step for image in found.Images("rollout/own, clean, estimate")] == [0, 2, 4]


def test_a_stage_after_another_goes_on_and_one_from_an_earlier_state_takes_back_the_later_steps(begin):
    first = trained(begin("a"), 3)
    second = trained(first, 3)
    assert curve(events(second), "loss/total")[0] == [1, 2, 3, 4, 5, 6]
    assert curve(events(second), "loss/smoothed")[1][-1] == pytest.approx(
        sum(second.history.columns["total"]) / 6, rel=1e-6
    )
    trained(first, 1)
    assert curve(events(first), "loss/total")[0] == [1, 2, 3, 4]


def test_pictures_of_the_users_prompts_are_there(begin, tmp_path):
    import torch

    run = begin("a")
    write_samples(run.folder.samples_folder(0), 0, ["a cat", "a dog"], torch.rand(2, 3, 8, 12))
    with board_of(run, True):
        pass
    found = events(run)
    tags = [tag for tag in found.Tags()["images"] if tag.startswith("prompts/")]
    assert tags == ["prompts/00 a cat", "prompts/01 a dog"]
    (image,) = found.Images(tags[0])
    assert (image.step, image.width, image.height) == (0, 12, 8)


def test_nothing_of_the_training_depends_on_them(begin):
    with_files, without = trained(begin("a"), 4), trained(begin("b"), 4, wanted=False)
    for key, tensor in with_files.state.tensors.items():
        assert tensor.equal(without.state.tensors[key]) or tensor.isnan().any(), key
    assert not without.folder.events_folder.exists()


def test_a_missing_package_is_said_before_anything_is_read(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(boards, "find_spec", lambda name: None if name == "tensorboard" else found(name))
    with pytest.raises(RuntimeError) as told:
        RolloutTrainLoRA.execute(tensorboard=True)  # no model, no data: it does not come to that
    assert str(told.value) == (
        "tensorboard must be off where the Python package tensorboard is missing, got on; switch it off, or run "
        f'"{sys.executable}" -m pip install tensorboard'
    )
