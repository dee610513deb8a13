"""A toy pack shaped like the real one: a source with widgets, a trainer that can be cancelled, a picture."""

import json
from pathlib import Path

import pytest
import torch

from rollout_trainer import host
from rollout_trainer.host import io, ui
from rollout_trainer.host.graph.catalog import from_nodes
from rollout_trainer.host.standalone.core_nodes import CORE_NODES

GRAPHS = Path(__file__).parent.parent / "graphs"
Run = io.Custom("ROLLOUT_RUN")
Settings = io.Custom("ROLLOUT_OPTIMIZER")


class ToySettings(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ToySettings",
            display_name="Toy Settings",
            description="Settings of a toy.",
            inputs=[
                io.Float.Input("rate", default=0.5, min=0.0, max=1.0, tooltip="How fast."),
                io.Combo.Input("mode", options=["slow", "fast"], default="slow"),
                io.String.Input("note", default="", optional=True),
                io.Boolean.Input("ema", default=True),
            ],
            outputs=[Settings.Output(display_name="settings")],
        )

    @classmethod
    def execute(cls, rate, mode, ema, note="none"):
        return io.NodeOutput({"rate": rate, "mode": mode, "note": note, "ema": ema})


class ToyTrain(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ToyTrain",
            inputs=[
                Settings.Input("settings"),
                io.Int.Input("seed", default=0, min=0, max=2**32, control_after_generate=True),
                io.Int.Input("steps", default=3, min=1, max=100),
                io.String.Input("folder", default="."),
            ],
            outputs=[Run.Output(display_name="run"), io.Image.Output(display_name="picture")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, folder=None):
        if folder is not None and not host.current().resolve_path(folder).is_dir():
            return f"folder must be a folder with pictures, got {folder!r}; check the path"
        return True

    @classmethod
    def execute(cls, settings, seed, steps, folder):
        assert torch.is_inference_mode_enabled()
        here, losses = host.current(), []
        progress = here.progress(steps)
        try:
            for step in range(steps):
                losses.append(1 / (step + 1))
                progress.update(step + 1, f"loss {losses[-1]:.3f}")
        except host.Cancelled:
            here.report({"saved": f"state-{len(losses)}"})
            raise
        here.report({"seed": seed, "steps": steps, "loss": {"total": losses}, "lora": "toy.safetensors"})
        run = {"seed": seed, "node": cls.hidden.unique_id, **settings}
        return io.NodeOutput(run, torch.full((1, 4, 4, 3), 0.5), ui=ui.PreviewText("trained"))


class ToyBroken(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="ToyBroken", outputs=[io.Image.Output()])

    @classmethod
    def execute(cls):
        raise FloatingPointError("loss must be finite, got nan at step 3; lower the rate")


class ToyAsync(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="ToyAsync", outputs=[io.Image.Output()])

    @classmethod
    async def execute(cls):
        return io.NodeOutput(torch.zeros(1, 2, 2, 3))


TOYS = (ToySettings, ToyTrain, ToyBroken, ToyAsync)


@pytest.fixture
def toys():
    return TOYS


@pytest.fixture
def catalog():
    return from_nodes([*CORE_NODES, *TOYS])


@pytest.fixture
def api_graph():
    """The API format of a small graph that is in order."""
    return {
        "1": {"class_type": "ToySettings", "inputs": {"rate": 0.25, "mode": "fast", "ema": False}},
        "2": {
            "class_type": "ToyTrain",
            "inputs": {"settings": ["1", 0], "seed": 7, "steps": 2, "folder": "."},
            "_meta": {"title": "My training"},
        },
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 1], "filename_prefix": "toy/run"}},
    }


@pytest.fixture
def saved():
    """Read one of the workflows in `tests/unit/graphs`."""
    return lambda name: json.loads((GRAPHS / name).read_text())
