"""The few nodes of ComfyUI itself that shared graphs cannot do without, for the standalone host.

Same ids, inputs and outputs as the originals; ComfyUI never sees these. Reroute, Note, MarkdownNote and
PrimitiveNode exist in the front end alone; `graph/front_end.py` resolves them.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .. import schema as io
from . import ui
from .host import current


class SaveImage(io.ComfyNode):
    """Saves pictures below the output folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The schema."""
        return io.Schema(
            node_id="SaveImage",
            display_name="Save Image",
            category="image",
            inputs=[io.Image.Input("images"), io.String.Input("filename_prefix", default="ComfyUI")],
            outputs=[io.Image.Output(display_name="images")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images: Tensor, filename_prefix: str) -> io.NodeOutput:
        """Save `images: [N, H, W, C]`."""
        saved = current().save_images(images, filename_prefix, node=cls)
        return io.NodeOutput(images, ui=ui.SavedImages(saved))


class PreviewImage(io.ComfyNode):
    """Saves pictures below `preview/`: there is no window to show them in."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The schema."""
        return io.Schema(
            node_id="PreviewImage",
            display_name="Preview Image",
            category="image",
            inputs=[io.Image.Input("images")],
            outputs=[io.Image.Output(display_name="images")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images: Tensor) -> io.NodeOutput:
        """Save `images: [N, H, W, C]`."""
        return io.NodeOutput(images, ui=ui.PreviewImage(images, cls=cls))


class PreviewAny(io.ComfyNode):
    """Shows anything as text."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The schema."""
        return io.Schema(
            node_id="PreviewAny",
            display_name="Preview as Text",
            category="utilities",
            inputs=[io.AnyType.Input("source")],
            outputs=[io.String.Output()],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, source: Any) -> io.NodeOutput:
        """`source` as text: JSON where that is possible."""
        as_json = json.dumps(source, indent=4, ensure_ascii=False, default=str)
        text = source if isinstance(source, str) else as_json
        return io.NodeOutput(text, ui=ui.PreviewText(text))


class LoadImage(io.ComfyNode):
    """Loads a picture from beside the graph, or from any path."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The schema."""
        return io.Schema(
            node_id="LoadImage",
            display_name="Load Image",
            category="image",
            inputs=[io.Combo.Input("image", options=[], upload=io.UploadType.image)],
            outputs=[io.Image.Output(display_name="IMAGE"), io.Mask.Output(display_name="MASK")],
        )

    @classmethod
    def validate_inputs(cls, image: str | None = None) -> bool | str:
        """Check that the file is there and is a picture."""
        if image is None:
            return True
        path = current().resolve_path(_file_name(image))
        try:
            with Image.open(path) as picture:
                picture.verify()
        except (OSError, UnidentifiedImageError, SyntaxError):
            return f"image must be a readable picture, got {path}"
        return True

    @classmethod
    def execute(cls, image: str) -> io.NodeOutput:
        """The picture `[1, H, W, 3]` and its inverted alpha `[1, H, W]`, like ComfyUI does."""
        with Image.open(current().resolve_path(_file_name(image))) as file:
            picture = ImageOps.exif_transpose(file)
        pixels = torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32) / 255)
        if "A" not in picture.getbands():
            return io.NodeOutput(pixels[None], torch.zeros(1, 64, 64))
        alpha = torch.from_numpy(np.array(picture.getchannel("A"), dtype=np.float32) / 255)
        return io.NodeOutput(pixels[None], 1 - alpha[None])


def _file_name(value: str) -> str:
    """Drop the folder that the front end appends to uploaded files, as in `face.png [input]`."""
    return value.rsplit(" [", 1)[0] if value.endswith("]") else value


def _primitive(node_id: str, value: io.WidgetInput, output: type[io.Output]) -> type[io.ComfyNode]:
    """A node whose only output is its only widget."""

    class Primitive(io.ComfyNode):
        """A constant to be shared by several inputs."""

        @classmethod
        def define_schema(cls) -> io.Schema:
            return io.Schema(
                node_id=node_id, category="utilities/primitive", inputs=[value], outputs=[output()]
            )

        @classmethod
        def execute(cls, value: Any) -> io.NodeOutput:
            return io.NodeOutput(value)

    Primitive.__name__ = node_id
    return Primitive


CORE_NODES: tuple[type[io.ComfyNode], ...] = (
    SaveImage,
    PreviewImage,
    PreviewAny,
    LoadImage,
    _primitive(
        "PrimitiveInt",
        io.Int.Input("value", min=-sys.maxsize, max=sys.maxsize, control_after_generate=True),
        io.Int.Output,
    ),
    _primitive("PrimitiveFloat", io.Float.Input("value", min=-sys.maxsize, max=sys.maxsize), io.Float.Output),
    _primitive("PrimitiveString", io.String.Input("value"), io.String.Output),
    _primitive("PrimitiveStringMultiline", io.String.Input("value", multiline=True), io.String.Output),
    _primitive("PrimitiveBoolean", io.Boolean.Input("value"), io.Boolean.Output),
)
