"""Data: pictures from a folder, encoded for a model."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from ..host import current, io, ui
from ..host.interface import Progress as Bar
from ..training.data.cache import TensorCache
from ..training.data.clips import Cutting, Given, Part
from ..training.data.dataset import LatentDataset
from ..training.data.encoding import encode, samples_shown
from ..training.data.folders import DataProgress, check_image_folder, folder_stamp, read_image_folder
from ..training.data.given import dataset_from_images
from ..training.data.images import ImageDataset, Role
from ..training.data.mixture import Added, mixed
from ..training.data.sheet import contact_sheet
from ..training.models.source import LoadedModel
from . import sockets
from .base import Node
from .comfy import as_model, hosted_inputs, with_clip_vision
from .schemas import schema


def as_data(given: LatentDataset | ImageDataset, model: LoadedModel) -> LatentDataset:
    """Data to train on, of what a socket took: encoded as it is; pictures as Encode Dataset encodes them by default."""
    if isinstance(given, LatentDataset):
        return given
    return encode(given, model.source, None, current().cache_dir(), shown())


class RolloutDatasetFromFolder(Node):
    """Pictures and captions from a folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="RolloutDatasetFromFolder",
            display_name="Dataset from Folder",
            description="Pictures and clips with captions: NAME.png or NAME.mp4, and NAME.txt. A sub-folder 10_name "
            "repeats its pictures 10 times; NAME.mask.png is a mask. What is not used is named in the summary. "
            "demo/data holds the 24 pictures that come with the pack.",
            inputs=[
                io.String.Input(
                    "folder",
                    default="demo/data",
                    tooltip="Folder with pictures. A relative path is looked for in ComfyUI's folders, then in the "
                    "pack.",
                ),
                io.String.Input(
                    "default_caption",
                    default="",
                    tooltip="Caption for pictures that have none. Empty: every picture must have one.",
                ),
                io.String.Input(
                    "trigger_word",
                    default="",
                    tooltip="Put in front of every caption that does not contain it as a word.",
                ),
                io.Boolean.Input(
                    "alpha_masks",
                    default=False,
                    tooltip="Train only the parts of a picture that are not transparent. A mask file is used instead "
                    "where there is one.",
                ),
                io.Boolean.Input(
                    "subfolders",
                    optional=True,
                    default=False,
                    tooltip="Read sub-folders of any name, at any depth. Off: only those named 10_name.",
                ),
                *(widget for i in (1, 2, 3) for widget in control_widgets(i)),
                *clip_widgets(),
            ],
            outputs=[
                sockets.Dataset.Output(
                    display_name="dataset",
                    tooltip="The pictures with their captions, not encoded yet: for Encode Dataset, Mix "
                    "Datasets or directly for Train LoRA.",
                ),
                io.String.Output(
                    display_name="summary",
                    tooltip="How many pictures were found, in which sizes, and a line for each file that "
                    "is not used and why.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, folder: str | None, *, default_caption: str | None = None, subfolders: bool | None = None
    ) -> bool | str:
        """Read the folder before anything runs: a fault in it is one line now, not an hour later.

        What is not known yet is None, as it comes through a link. ComfyUI passes what stands before the star
        alone, and says a fault once for each of those: there, a missing caption shows when the node runs.
        """
        if folder is None:
            return True
        try:
            default = "unknown" if default_caption is None else default_caption
            check_image_folder(place_of(folder), default or None, subfolders)
        except ValueError as err:
            return str(err)
        return True

    @classmethod
    def fingerprint_inputs(cls, folder: str | None, **inputs: object) -> str:
        """A folder whose files changed is another input; None: its name comes through a link."""
        folder = folder or current().linked_text("folder")
        if not folder:
            return ""
        controls = [str(text) for name, text in inputs.items() if re.fullmatch(r"control_\d", name) and text]
        try:
            return ";".join(folder_stamp(current().resolve_path(text)) for text in (folder, *controls))
        except ValueError:  # execute says so
            return ""

    @classmethod
    def execute(
        cls,
        folder: str,
        default_caption: str,
        trigger_word: str,
        alpha_masks: bool,
        subfolders: bool = False,
        control_1: str = "",
        control_1_role: Role = "reference",
        control_2: str = "",
        control_2_role: Role = "reference",
        control_3: str = "",
        control_3_role: Role = "reference",
        clip_frames: int = 33,
        clip_fps: float = 0.0,
        clip_part: Part = "start",
        clip_gives: Given = "nothing",
    ) -> io.NodeOutput:
        """Read it."""
        given = ((control_1, control_1_role), (control_2, control_2_role), (control_3, control_3_role))
        dataset = read_image_folder(
            place_of(folder),
            default_caption or None,
            trigger_word.strip(),
            alpha_masks,
            nested=subfolders,
            known=current().cache_dir() / "folders",
            progress=shown(),
            controls=[(place_of(text), role) for text, role in given if text.strip()],
            cutting=Cutting(clip_frames, clip_fps, clip_part, clip_gives),
        )
        summary = dataset.summary()
        return io.NodeOutput(dataset, summary, ui={"text": (summary,)})


def control_widgets(number: int) -> list[io.Input]:
    """A folder of controls, and what they are to the pictures."""
    return [
        io.String.Input(
            f"control_{number}",
            optional=True,
            default="",
            tooltip="For edit, inpaint and image-to-video models: a folder with a picture of the same name for each "
            "picture of the dataset. Empty: none.",
        ),
        io.Combo.Input(
            f"control_{number}_role",
            optional=True,
            options=list(get_args(Role)),
            default="reference",
            tooltip="What these pictures are: reference, what the model looks at while it draws; start frame or end "
            "frame of a clip; inpaint, a mask whose white parts are drawn anew.",
        ),
    ]


def clip_widgets() -> list[io.Input]:
    """How samples are cut out of clips."""
    return [
        io.Int.Input(
            "clip_frames",
            optional=True,
            default=33,
            min=1,
            max=4096,
            tooltip="Clips, for video models: most frames of a sample. Shortened to what the model takes: 81, 49 or 33 "
            "for Wan and HunyuanVideo, 97, 49 or 33 for LTX. More frames need more memory.",
        ),
        io.Float.Input(
            "clip_fps",
            optional=True,
            default=0.0,
            min=0.0,
            max=240.0,
            step=0.001,
            tooltip="Clips: frames per second that they are brought to. 0 takes what the model was made for: Wan 16 "
            "(2.2 5B: 24), HunyuanVideo 24, LTX 25.",
        ),
        io.Combo.Input(
            "clip_part",
            optional=True,
            options=list(get_args(Part)),
            default="start",
            tooltip="Clips longer than clip_frames: use their start, their middle, or all parts, one after the other, "
            "each as a sample of its own.",
        ),
        io.Combo.Input(
            "clip_gives",
            optional=True,
            options=list(get_args(Given)),
            default="nothing",
            tooltip="Clips, for image-to-video models: the frames of each sample that the model is given and does not "
            "make itself. Leave it at nothing for text-to-video.",
        ),
    ]


def place_of(folder: str) -> Path:
    """The folder that a user means.

    Raises:
        ValueError: nothing is named, or a path of another machine.
    """
    if not folder.strip():
        raise ValueError(
            "folder must name a folder with pictures, got nothing; demo/data comes with the pack"
        )
    path = current().resolve_path(folder)
    if os.name != "nt" and re.match(r"[A-Za-z]:[\\/]", folder.strip(" \"'\n")) and not path.exists():
        raise ValueError(f"folder must lie on the machine that trains, got the Windows path {folder.strip()}")
    return path


def shown() -> DataProgress:
    """The host's progress bar, which begins with what there is to do."""
    bars: list[Bar] = []

    def show(done: int, total: int) -> None:
        if not bars:
            bars.append(current().progress(total))
        bars[0].update(done)

    return show


class RolloutEncodeDataset(Node):
    """Pictures and captions as the model sees them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="RolloutEncodeDataset",
            display_name="Encode Dataset",
            description="Turns pictures into latents and captions into conditioning, the form in which the model "
            "reads them. Results are kept on disk: the same pictures and the same model need it only once.",
            inputs=[
                sockets.AnyModel.Input(
                    "model",
                    tooltip="The model that will be trained; its VAE and text encoders are used. A MODEL of "
                    "ComfyUI needs clip and vae beside it.",
                ),
                sockets.Dataset.Input("dataset", tooltip="The pictures."),
                io.Int.Input(
                    "resolution",
                    default=0,
                    min=0,
                    max=16384,
                    tooltip="Side of a square picture in pixels; other shapes get about the same area. 0 takes the "
                    "model's own size.",
                ),
                io.Int.Input(
                    "bucket_step",
                    default=64,
                    min=8,
                    max=1024,
                    step=8,
                    tooltip="Width and height of pictures that are not square are multiples of this many "
                    "pixels.",
                ),
                io.Float.Input(
                    "max_aspect",
                    default=2.0,
                    min=1.0,
                    max=8.0,
                    step=0.1,
                    tooltip="Largest aspect ratio (long side / short side). Longer pictures are cropped to it; 1 "
                    "crops everything to a square.",
                ),
                io.Boolean.Input(
                    "mirror",
                    default=False,
                    tooltip="Add the mirror image of every picture; not for text or faces.",
                ),
                io.Int.Input(
                    "caption_variants",
                    optional=True,
                    default=1,
                    min=1,
                    max=100,
                    tooltip="For captions made of tags with commas between them. Above 1: each caption is encoded in "
                    "this many orders of its tags, and training draws one of them every time. Takes that many times "
                    "the time and memory for captions; 4 to 10 are enough.",
                ),
                io.Int.Input(
                    "keep_tags",
                    optional=True,
                    default=1,
                    min=0,
                    max=1000,
                    tooltip="With caption_variants above 1: this many tags at the front stay there, for example a "
                    "trigger word.",
                ),
                *hosted_inputs(),
                io.Boolean.Input(
                    "caption_weights",
                    optional=True,
                    default=False,
                    tooltip="If model is a MODEL of ComfyUI: (word:1.2) in a caption weighs the word, as in prompts. "
                    "Off: brackets are text, as in names of tags.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="For image-to-video models that are told what is seen in the start frame, as Wan 2.1: the "
                    "CLIP vision model that you draw with.",
                ),
            ],
            outputs=[
                sockets.Data.Output(
                    display_name="data",
                    tooltip="The encoded pictures and captions, ready for training: for Train LoRA, "
                    "Validate, Exposure Bias and Preview Rollout.",
                ),
                io.String.Output(
                    display_name="summary",
                    tooltip="How many samples there are, and in which sizes they will be trained.",
                ),
                io.Image.Output(
                    display_name="contact_sheet",
                    tooltip="The pictures as they will be trained on, cropped, with their captions. Wire "
                    "it to Preview Image and look at it before you train.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: object) -> str:
        """Encoded data that a training has found deleted or damaged is made anew."""
        return str(TensorCache.lost)

    @classmethod
    def execute(
        cls,
        model: Any,
        dataset: ImageDataset,
        resolution: int,
        bucket_step: int,
        max_aspect: float,
        mirror: bool,
        caption_variants: int = 1,
        keep_tags: int = 1,
        clip: Any = None,
        vae: Any = None,
        caption_weights: bool = False,
        clip_vision: Any = None,
    ) -> io.NodeOutput:
        """Encode what is not in the cache."""
        if clip_vision is not None and not dataset.gives_frames:
            raise ValueError(
                "clip_vision must not be connected for data without start or end frames; take its wire away, or set "
                "clip_gives or a control folder in Dataset from Folder"
            )
        source = with_clip_vision(as_model(model, clip, vae), clip_vision).source
        some = samples_shown(
            dataset, source, resolution or None, bucket_step=bucket_step, max_aspect=max_aspect
        )
        sheet = contact_sheet(some)
        data = encode(
            dataset,
            source,
            resolution or None,
            current().cache_dir(),
            shown(),
            bucket_step=bucket_step,
            max_aspect=max_aspect,
            flip=mirror,
            variants=caption_variants,
            keep_tags=keep_tags,
            caption_weights=caption_weights,
        )
        summary = data.summary()
        seen: dict[str, Any] = {"text": (summary,)}
        if current().name == "comfyui":  # a terminal shows no pictures
            seen |= ui.PreviewImage(sheet, cls=cls).as_dict()
        return io.NodeOutput(data, summary, sheet, ui=seen)


class RolloutDatasetFromImages(Node):
    """IMAGE and STRING as a dataset."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="RolloutDatasetFromImages",
            display_name="Dataset from Images",
            description="Makes a dataset of pictures and captions that other nodes give, as lists or batches: "
            "ComfyUI's own dataset nodes, for example. Encode Dataset turns it into what a model reads.",
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="The pictures, of any sizes."),
                io.String.Input(
                    "texts",
                    default="",
                    tooltip="Their captions: one for all, or one for each in the same order.",
                ),
                io.String.Input(
                    "trigger_word",
                    default="",
                    tooltip="Put in front of every caption that does not contain it as a word.",
                ),
                io.Int.Input(
                    "repeats",
                    default=1,
                    min=1,
                    max=10000,
                    tooltip="How often each picture comes in an epoch.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="Where each picture is trained, white yes and black no: one for all, or one "
                    "for each.",
                ),
            ],
            outputs=[
                sockets.Dataset.Output(
                    display_name="dataset",
                    tooltip="The pictures with their captions, not encoded yet: for Encode Dataset, Mix "
                    "Datasets or directly for Train LoRA.",
                ),
                io.String.Output(
                    display_name="summary", tooltip="How many pictures were given, and in which sizes."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: list[Tensor],
        texts: list[str],
        trigger_word: list[str],
        repeats: list[int],
        masks: list[Tensor] | None = None,
    ) -> io.NodeOutput:
        """Keep the pictures as files."""
        dataset = dataset_from_images(
            [picture for batch in images for picture in batch],
            texts,
            None if masks is None else [mask for batch in masks for mask in batch],
            current().cache_dir() / "pictures",
            trigger_word[0].strip(),
            repeats[0],
        )
        summary = dataset.summary()
        return io.NodeOutput(dataset, summary, ui={"text": (summary,)})


class RolloutMixDatasets(Node):
    """Several datasets in one training."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="RolloutMixDatasets",
            display_name="Mix Datasets",
            description="Adds a dataset to another: a second subject, or pictures that keep the model from "
            "forgetting. Each keeps its own folder, repeats, mirror images and resolution. For more than two, chain "
            "these nodes.",
            inputs=[
                sockets.Data.Input("data", tooltip="A dataset, or several that are mixed already."),
                sockets.Data.Input("added", tooltip="The dataset that is added."),
                io.Float.Input(
                    "share",
                    default=0.5,
                    min=0.01,
                    max=0.99,
                    step=0.01,
                    tooltip="Part of the batches that come from the added dataset: 0.5 is half of them.",
                ),
                io.Float.Input(
                    "caption_dropout",
                    default=-1.0,
                    min=-1.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Chance that a sample of the added dataset is trained without its caption; -1 takes the "
                    "training's own.",
                ),
                io.Float.Input(
                    "loss_weight",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    tooltip="What the loss of the added dataset is multiplied with: below 1 it pulls less, as is "
                    "usual for regularisation pictures.",
                ),
            ],
            outputs=[
                sockets.Data.Output(
                    display_name="data",
                    tooltip="The datasets as one, for Train LoRA: each batch is drawn from them by their "
                    "shares.",
                ),
                io.String.Output(
                    display_name="summary", tooltip="What each dataset gives, and its share of the batches."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        data: LatentDataset,
        added: LatentDataset,
        share: float,
        caption_dropout: float,
        loss_weight: float,
    ) -> io.NodeOutput:
        """Put them together."""
        dropout = None if caption_dropout < 0 else caption_dropout
        out = mixed(data, added, Added(share, dropout, loss_weight))
        summary = out.summary()
        return io.NodeOutput(out, summary, ui={"text": (summary,)})
