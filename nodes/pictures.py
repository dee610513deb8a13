"""Pictures: samples from the trained model, the filmstrip of a rollout, the loss curve, comparisons."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..host import current, io
from ..training.data.dataset import LatentDataset
from ..training.objective.config import RolloutConfig
from ..training.pictures import plots, preview
from ..training.pictures.exposure import exposure_bias
from ..training.pictures.sampling import Prompts, sample
from ..training.runs.run import Run
from . import sockets
from .base import Node
from .comfy import as_model
from .sampler import solver_inputs
from .schemas import schema
from .widgets import NO_LIMIT


def as_image(picture: plots.Picture) -> Tensor:
    """A plot as the host's IMAGE: [1, H, W, 3] float32 in [0, 1]."""
    return torch.from_numpy(picture.copy()).float()[None] / 255


def size_inputs() -> tuple[io.Input, ...]:
    """The widgets for the size of drawn pictures."""
    return tuple(
        io.Int.Input(
            name,
            default=0,
            min=0,
            max=16384,
            step=8,
            tooltip=f"{name.capitalize()} in pixels; 0 takes the model's own size.",
        )
        for name in ("width", "height")
    )


class RolloutSample(Node):
    """Pictures from prompts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="RolloutSample",
            display_name="Sample (Rollout)",
            description="Draws a picture for each prompt, with the solvers that rollouts use in training. The first "
            "picture starts from the noise of seed, the next from that of seed + 1, and so on.",
            inputs=[
                sockets.AnyModel.Input(
                    "model", tooltip="The base model, or the model output of a training node."
                ),
                io.String.Input(
                    "prompts",
                    default="grinning face, blob style, white background",
                    multiline=True,
                    tooltip="One prompt per line, one picture each.",
                ),
                io.String.Input(
                    "negative",
                    default="",
                    multiline=True,
                    tooltip="What the pictures should not show; used with cfg above 1. Empty is usual.",
                ),
                *size_inputs(),
                io.Int.Input(
                    "steps", default=20, min=1, max=1000, tooltip="Sampling steps; 8 to 50 are usual."
                ),
                *solver_inputs(),
                io.Float.Input(
                    "cfg",
                    default=2.0,
                    min=1.0,
                    max=30.0,
                    step=0.1,
                    tooltip="Guidance: above 1 follows the prompt more closely; 1 is off and twice as fast.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of the noise: the same seed draws the same pictures.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images",
                    tooltip="The pictures that were drawn, one for each prompt: for Preview Image, Save "
                    "Image or Compare Images.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        prompts: str,
        negative: str,
        width: int,
        height: int,
        steps: int,
        sampler: str,
        order: int,
        cfg: float,
        seed: int,
    ) -> io.NodeOutput:
        """Sample with the host's progress bar."""
        bar = current().progress(steps)
        lines = [line.strip() for line in prompts.splitlines() if line.strip()]
        pixels = sample(
            as_model(model),
            lines,
            negative.strip(),
            height or None,
            width or None,
            steps=steps,
            sampler=sampler,
            order=order,
            cfg=cfg,
            seed=seed,
            watch=lambda done, total, denoised: bar.update(done),
        )
        return io.NodeOutput(pixels.permute(0, 2, 3, 1).contiguous())  # [N, 3, H, W] -> [N, H, W, 3]


class RolloutSamplePrompts(Node):
    """The user's own prompts, drawn while a run trains."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="RolloutSamplePrompts",
            display_name="Sample Prompts",
            description="Draws your own prompts while a LoRA trains, always from the same noise, and shows them in the "
            "panel of the training node: before, on the way, after. The training itself stays the same bit for bit.",
            inputs=[
                io.String.Input(
                    "prompts",
                    default="grinning face, blob style, white background",
                    multiline=True,
                    tooltip="One prompt per line, one picture each. Two or three are enough.",
                ),
                io.Int.Input(
                    "every",
                    default=100,
                    min=1,
                    max=NO_LIMIT,
                    tooltip="Training steps between two drawings. A drawing takes steps model calls for "
                    "each prompt.",
                ),
                io.Int.Input(
                    "steps", default=20, min=1, max=1000, tooltip="Sampling steps; 8 to 30 are usual."
                ),
                *solver_inputs(),
                io.Float.Input(
                    "cfg",
                    default=2.0,
                    min=1.0,
                    max=30.0,
                    step=0.1,
                    tooltip="Guidance, as you will draw with the LoRA; 1 is off and twice as fast.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFF,
                    control_after_generate=False,
                    tooltip="Seed of the noise: all drawings of a prompt begin alike.",
                ),
                io.String.Input(
                    "negative",
                    default="",
                    multiline=True,
                    tooltip="What the pictures should not show; with cfg above 1.",
                ),
                *size_inputs(),
            ],
            outputs=[
                sockets.SamplePrompts.Output(
                    display_name="sample_prompts",
                    tooltip="For the input sample_prompts of Train LoRA or Train Steps, which draws the "
                    "prompts while it trains.",
                )
            ],
        )

    @classmethod
    def execute(cls, prompts: str, negative: str, width: int, height: int, **settings: Any) -> io.NodeOutput:
        """Collect them."""
        lines = tuple(line.strip() for line in prompts.splitlines() if line.strip())
        return io.NodeOutput(Prompts(lines, negative.strip(), height or None, width or None, **settings))


class RolloutPreview(Node):
    """A rollout as training sees it, as pictures and numbers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="RolloutPreview",
            display_name="Preview Rollout",
            description="Rolls a few samples out and shows, step by step, the state that the model reached, the "
            "picture of the data with just as much noise, and the model's guess of the finished picture. Also draws "
            "the distance of the first two (drift), beside the drift that a perfect model has.",
            inputs=[
                sockets.AnyModel.Input(
                    "model", tooltip="The base model, or the model output of a training node."
                ),
                sockets.Data.Input("data", tooltip="Where the samples come from."),
                sockets.ScheduledSampling.Input(
                    "scheduled_sampling", tooltip="Solver, order and step size of the rollout."
                ),
                io.Int.Input(
                    "samples",
                    default=2,
                    min=1,
                    max=64,
                    tooltip="How many pictures of the data are rolled out.",
                ),
                io.Int.Input(
                    "steps",
                    default=5,
                    min=1,
                    max=1000,
                    tooltip="Length of the rollout in steps; shorter where it would have to start beyond "
                    "pure noise.",
                ),
                io.Float.Input(
                    "target",
                    default=0.5,
                    min=0.0,
                    max=0.99,
                    step=0.01,
                    tooltip="Where the rollout ends, on the way from the picture (0) to pure noise (1).",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFF,
                    control_after_generate=False,
                    tooltip="Seed of the noise.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="filmstrip",
                    tooltip="One picture: the model's own states in the upper row, the clean ones below.",
                ),
                io.Image.Output(
                    display_name="frames",
                    tooltip="The model's own states as a batch of pictures, from noisy to clean.",
                ),
                io.Image.Output(
                    display_name="drift_plot",
                    tooltip="How far the own states lead away from the clean ones, step by step, beside "
                    "what a perfect model has.",
                ),
                io.String.Output(display_name="drift", tooltip="The same numbers as text."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        data: LatentDataset,
        scheduled_sampling: RolloutConfig,
        samples: int,
        steps: int,
        target: float,
        seed: int,
    ) -> io.NodeOutput:
        """Roll out, decode, draw."""
        model = as_model(model)
        bucket = data.buckets[0]
        n = min(samples, len(bucket))
        batch = data.batch(torch.arange(n))
        frames = preview.rollout_frames(model, batch.x0, batch.cond, target, steps, scheduled_sampling, seed)
        own, clean, denoised = (
            preview.pictures(model.source, states, sigmas)  # [T + 1, B, H, W, 3]
            for states, sigmas in (
                (frames.own, frames.sigmas),
                (frames.clean, frames.sigmas),
                (frames.denoised, None),
            )
        )
        strips = [
            plots.filmstrip(
                own[:, i].numpy(),
                clean[:, i].numpy(),
                denoised[:, i].numpy(),
                frames.sigmas.tolist(),
                frames.drift[:, i].tolist(),
                frames.floor[:, i].tolist(),
            )
            for i in range(n)
        ]
        facts = frames.summary()
        current().report({"drift": facts})
        curve = plots.drift_plot(facts["sigma"], facts["drift"], facts["floor"])
        text = "\n".join(
            f"sigma {s:.3f}: drift {d:.4f}, floor {f:.4f}"
            for s, d, f in zip(facts["sigma"], facts["drift"], facts["floor"], strict=True)
        )
        strip = torch.cat([as_image(s) for s in strips])
        return io.NodeOutput(
            strip, own.transpose(0, 1).flatten(0, 1), as_image(curve), text, ui={"text": (text,)}
        )


class RolloutExposureBias(Node):
    """How a model's own states differ from the forward process."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="RolloutExposureBias",
            display_name="Exposure Bias",
            description="Lets the model draw the captions of the data and compares, at every noise level, the states "
            "on its way with noised pictures of the data: as two groups, not one by one. Dashed lines are what a "
            "perfect model would show. Connect a second model to compare, for example with and without a LoRA.",
            inputs=[
                sockets.AnyModel.Input("model", tooltip="The model to measure."),
                sockets.Data.Input(
                    "data", tooltip="Pictures and captions; better those that were not trained on."
                ),
                io.Int.Input(
                    "samples",
                    default=64,
                    min=2,
                    max=4096,
                    tooltip="How many pictures are drawn; 64 or more, fewer say little.",
                ),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Sampling steps of each picture."),
                *solver_inputs(
                    default="euler",
                    tooltip="How pictures are calculated from noise. The error that it makes itself is "
                    "measured too.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFF,
                    control_after_generate=False,
                    tooltip="Seed of the noise.",
                ),
                sockets.AnyModel.Input("other", optional=True, tooltip="A second model to compare with."),
            ],
            outputs=[
                io.Image.Output(
                    display_name="plot",
                    tooltip="How much the own states differ from clean ones at each noise level, drawn.",
                ),
                io.String.Output(display_name="report", tooltip="The same numbers as text."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        data: LatentDataset,
        samples: int,
        steps: int,
        sampler: str,
        order: int,
        seed: int,
        other: Any = None,
    ) -> io.NodeOutput:
        """Measure and draw."""
        models = {"model": as_model(model)} | ({} if other is None else {"other": as_model(other)})
        reports = {
            name: exposure_bias(m, data, samples, steps, sampler, order, seed).summary()
            for name, m in models.items()
        }
        current().report({"exposure_bias": reports})
        text = "\n".join(exposure_line(name, r) for name, r in reports.items())
        return io.NodeOutput(as_image(plots.exposure_plot(reports)), text, ui={"text": (text,)})


def exposure_line(name: str, report: dict[str, list[Any]]) -> str:
    """The measure of one model in a line."""
    bands = [ratio for ratio in report["spectrum"][-1] if not math.isnan(ratio)]  # flat areas first
    return (
        f"{name}: energy distance {max(report['energy']):.4f} at most (floor {max(report['energy_floor']):.4f}), "
        f"power at the end {report['power'][-1]:.3f}, of flat areas {bands[0]:.3f}, of the finest detail "
        f"{bands[-1]:.3f}"
    )


class RolloutLossPlot(Node):
    """The loss of a run over its steps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="RolloutLossPlot",
            display_name="Loss Plot (Rollout)",
            description="Draws the loss of a run over its steps, and its parts: base and, with ReflexFlow, the FC "
            "and ADR of rolled-out samples.",
            inputs=[
                sockets.Run.Input("run", tooltip="The run whose loss is drawn."),
                io.Int.Input("width", default=900, min=200, max=4096, tooltip="Width in pixels."),
                io.Int.Input("height", default=500, min=150, max=4096, tooltip="Height in pixels."),
            ],
            outputs=[
                io.Image.Output(display_name="plot", tooltip="The losses over the steps, as one picture.")
            ],
        )

    @classmethod
    def execute(cls, run: Run, width: int, height: int) -> io.NodeOutput:
        """Draw it."""
        return io.NodeOutput(as_image(plots.loss_plot(run.history.columns, (width, height))))


class RolloutCompareImages(Node):
    """Rows of pictures, one above the other."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="RolloutCompareImages",
            display_name="Compare Images (Rollout)",
            description="Lays batches of pictures out in labelled rows, for example before and after training with "
            "the same seed and prompts.",
            inputs=[
                io.Image.Input("first", tooltip="Upper row."),
                io.Image.Input("second", tooltip="Row below; pictures of the same size."),
                io.Image.Input("third", optional=True, tooltip="A third row, for example the real pictures."),
                io.String.Input(
                    "labels",
                    default="before\nafter",
                    multiline=True,
                    tooltip="One label per line, one for each row.",
                ),
                io.String.Input(
                    "captions",
                    default="",
                    multiline=True,
                    tooltip="One line for each column, for example the prompts; may be empty.",
                ),
                io.Image.Input("fourth", optional=True, tooltip="A fourth row."),
                io.Image.Input("fifth", optional=True, tooltip="A fifth row."),
            ],
            outputs=[
                io.Image.Output(
                    display_name="grid", tooltip="The batches as rows of one picture, with their names."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        first: Tensor,
        second: Tensor,
        labels: str,
        captions: str,
        third: Tensor | None = None,
        fourth: Tensor | None = None,
        fifth: Tensor | None = None,
    ) -> io.NodeOutput:
        """Lay them out."""
        rows = [row.cpu().numpy() for row in (first, second, third, fourth, fifth) if row is not None]
        names = [line for line in labels.splitlines() if line.strip()]
        names += [""] * (len(rows) - len(names))
        heads = [line.split(",")[0] for line in captions.splitlines() if line.strip()]
        return io.NodeOutput(as_image(plots.image_grid(rows, names[: len(rows)], heads[: len(first)])))
