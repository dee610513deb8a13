import pytest
import torch

from rollout_trainer.host import io, ui


class Scale(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Scale",
            inputs=[
                io.Image.Input("image"),
                io.Float.Input("factor", default=1.0, min=0.0, max=2.0, step=0.1, tooltip="Brightness."),
                io.Combo.Input("mode", options=["a", "b"], default="a"),
                io.Custom("ROLLOUT_RUN").Input("run", optional=True),
            ],
            outputs=[io.Image.Output(display_name="image"), io.Int.Output(display_name="count")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, image, factor, mode, run=None) -> io.NodeOutput:
        return io.NodeOutput(image * factor, len(image), ui=ui.PreviewText(mode))


def test_a_node_is_defined_and_called_like_in_comfyui():
    schema = Scale.GET_SCHEMA()
    assert [i.io_type for i in schema.inputs] == ["IMAGE", "FLOAT", "COMBO", "ROLLOUT_RUN"]
    assert [o.io_type for o in schema.outputs] == ["IMAGE", "INT"]
    result = Scale.execute(torch.ones(2, 1, 1, 3), 0.5, "b")
    assert result[1] == 2
    assert result.result[0].max() == 0.5
    assert result.ui.as_dict() == {"text": ("b",)}


def test_doubled_ids_are_refused():
    class Doubled(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema(node_id="Doubled", inputs=[io.Int.Input("x"), io.Int.Input("x")])

    with pytest.raises(ValueError, match="ids of Doubled must be unique"):
        Doubled.GET_SCHEMA()
