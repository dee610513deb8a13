"""Settings to begin with: one choice that stands for the settings nodes."""

from __future__ import annotations

from ..host import io
from ..training.models.hosted import HostModel
from ..training.models.source import LoadedModel, ModelSource
from ..training.trainer.recipes import RECIPES, recipe_for
from . import sockets
from .base import Node
from .schemas import schema


def model_class(source: ModelSource) -> str:
    """The class of a model, as recipes name it: ComfyUI's, or our diffusers backend's."""
    return source.name if isinstance(source, HostModel) else type(source).__name__


class RolloutRecipe(Node):
    """Settings that suit a family of models and a kind of data."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="RolloutRecipe",
            display_name="Recipe",
            description="Settings to begin with, for your model and your kind of data, as trainers use them. Connect "
            "what you need of it to the training node; the button turns it into ordinary settings nodes to change.",
            inputs=[
                sockets.Model.Input("model", tooltip="The model that will be trained."),
                io.Combo.Input(
                    "recipe",
                    options=list(RECIPES),
                    default=next(iter(RECIPES)),
                    tooltip="Your model, and what its LoRA is to learn: style (a look), subject (a person, thing or "
                    "character), edit (pairs of pictures), video (movement in clips).",
                ),
            ],
            outputs=[
                sockets.LoRA.Output(
                    display_name="lora",
                    tooltip="Rank, alpha and layers that suit the model: for the input lora of Train LoRA.",
                ),
                sockets.Optimizer.Output(
                    display_name="optimizer",
                    tooltip="Optimizer and learning rate that suit the model: for the input optimizer of "
                    "Train LoRA.",
                ),
                sockets.Timesteps.Output(
                    display_name="timesteps",
                    tooltip="The noise levels that the model should be trained at: for the input "
                    "timesteps of Train LoRA.",
                ),
                sockets.LossSettings.Output(
                    display_name="loss",
                    tooltip="The loss that suits the model: for the input loss of Train LoRA.",
                ),
                io.Int.Output(
                    display_name="resolution",
                    tooltip="The side in pixels that the model was made for: for the widget resolution of "
                    "Encode Dataset or Train LoRA.",
                ),
                io.String.Output(
                    display_name="summary",
                    tooltip="The settings of the recipe in words, and why they were chosen.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model: LoadedModel, recipe: str) -> io.NodeOutput:
        """Look it up and say what it sets."""
        source = model.source
        own = recipe_for(recipe, model_class(source))
        summary = own.summary(source.schedule)
        return io.NodeOutput(
            own.lora,
            own.optimizer,
            own.timesteps,
            own.loss,
            own.side,
            summary,
            ui={"text": (summary,)},
        )
