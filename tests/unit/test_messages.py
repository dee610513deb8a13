"""Memory of the computer that runs out has words: in a training, in any node, on the command line."""

import json

import pytest
import torch

from rollout_trainer.__main__ import main
from rollout_trainer.host import io
from rollout_trainer.messages import OutOfRAMError, without_words
from rollout_trainer.nodes import NODES
from rollout_trainer.nodes.base import Node
from rollout_trainer.training.runs.run import start, train


def no_memory(*_):
    raise MemoryError


def no_memory_for_a_tensor(*_):
    torch.empty(1 << 55)


@pytest.mark.parametrize("fail", [no_memory, no_memory_for_a_tensor])
def test_a_training_says_where_its_state_is(fail, make_source, make_data, make_config, tmp_path):
    """Before, Python's error had no text at all, and torch's named a line of its allocator."""
    source = make_source("flow")
    run = start(tmp_path, "t", source, make_data(), make_config())
    with pytest.raises(
        MemoryError, match=r"^out of memory \(RAM\) in step 3; step 2 is saved; close other programs"
    ):
        train(
            run, 8, lambda report: source.module.register_forward_pre_hook(fail) if report.step == 2 else None
        )
    assert run.folder.steps() == [0, 2]


class ToyHungry(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ToyHungry", display_name="Hungry", outputs=[io.Image.Output()], is_output_node=True
        )

    @classmethod
    def execute(cls):
        no_memory()


def test_a_node_says_that_it_was_the_one(tmp_path, capsys):
    (tmp_path / "w.json").write_text(json.dumps({"1": {"class_type": "ToyHungry", "inputs": {}}}))
    code = main(["run", str(tmp_path / "w.json"), "--out", str(tmp_path / "out")], [ToyHungry])
    error = capsys.readouterr().err.splitlines()[-1]
    assert code == 1
    assert "out of memory (RAM) in Hungry; close other programs" in error


def test_every_node_does():
    assert all(issubclass(node, Node) and hasattr(node.execute, "__wrapped__") for node in NODES)


def test_a_locked_copy_of_a_node_can_be_made():
    """As ComfyUI makes one for each execution: no attribute of it may be set, not even while it is made."""

    class Locked(type):
        def __setattr__(cls, name, value):
            raise AttributeError(name)

    copy = Locked("Clone", NODES[0].__bases__, dict(vars(NODES[0])))
    assert copy.execute.__func__ is NODES[0].execute.__func__


@pytest.mark.parametrize("err", [RuntimeError("mat1 and mat2"), ValueError(), OutOfRAMError("in x")])
def test_other_errors_are_left_alone(err):
    assert not without_words(err)
