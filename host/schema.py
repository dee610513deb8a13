"""Stand-in for `comfy_api.latest.io`: the V3 classes the pack uses, so that its nodes run without ComfyUI.

Only what ComfyUI 0.3.64 and 0.33.0 have in common is here: a node that uses more fails in a unit test and
not on a user's older installation. Arguments are keyword-only where the two versions order them differently.
`tests/host/test_schema_parity.py` compares the signatures with a real installation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar


class NumberDisplay(str, Enum):
    """How the front end draws a number."""

    number = "number"
    slider = "slider"


class FolderType(str, Enum):
    """The host's folders for files."""

    input = "input"
    output = "output"
    temp = "temp"


class UploadType(str, Enum):
    """What an upload button of a combo takes."""

    image = "image_upload"
    audio = "audio_upload"
    video = "video_upload"
    model = "file_upload"


class Input:
    """An input socket. `io_type` is set by the class it belongs to (`Int.Input`, `Image.Input`)."""

    io_type: str = "*"

    def __init__(
        self,
        id: str,
        *,
        display_name: str | None = None,
        optional: bool = False,
        tooltip: str | None = None,
        lazy: bool | None = None,
    ) -> None:
        self.id = id
        self.display_name = display_name
        self.optional = optional
        self.tooltip = tooltip
        self.lazy = lazy
        self.extra_dict: dict[str, Any] = {}


class WidgetInput(Input):
    """An input with a widget, whose value is stored in the workflow."""

    def __init__(
        self,
        id: str,
        *,
        display_name: str | None = None,
        optional: bool = False,
        tooltip: str | None = None,
        lazy: bool | None = None,
        default: Any = None,
        socketless: bool | None = None,
        force_input: bool | None = None,
    ) -> None:
        super().__init__(id, display_name=display_name, optional=optional, tooltip=tooltip, lazy=lazy)
        self.default = default
        self.socketless = socketless
        self.force_input = force_input


class Output:
    """An output socket."""

    io_type: str = "*"

    def __init__(
        self,
        id: str | None = None,
        display_name: str | None = None,
        tooltip: str | None = None,
        is_output_list: bool = False,
    ) -> None:
        self.id = id
        self.display_name = display_name or id
        self.tooltip = tooltip
        self.is_output_list = is_output_list


class ComfyTypeIO:
    """A socket type: its name and the classes of its inputs and outputs."""

    io_type: ClassVar[str] = "*"
    Input: ClassVar[type[Input]] = Input
    Output: ClassVar[type[Output]] = Output


def Custom(io_type: str) -> type[ComfyTypeIO]:  # noqa: N802  (the host's name)
    """A socket type named `io_type`."""
    members = {
        "io_type": io_type,
        "Input": type("Input", (Input,), {"io_type": io_type}),
        "Output": type("Output", (Output,), {"io_type": io_type}),
    }
    return type(io_type.title().replace("_", ""), (ComfyTypeIO,), members)


Image = Custom("IMAGE")
Mask = Custom("MASK")
Latent = Custom("LATENT")
Conditioning = Custom("CONDITIONING")
Model = Custom("MODEL")
Clip = Custom("CLIP")
Vae = Custom("VAE")
ClipVision = Custom("CLIP_VISION")
Sampler = Custom("SAMPLER")
Sigmas = Custom("SIGMAS")
Noise = Custom("NOISE")
Guider = Custom("GUIDER")
LoraModel = Custom("LORA_MODEL")
LossMap = Custom("LOSS_MAP")
AnyType = Custom("*")


def _output(type_name: str) -> type[Output]:
    return type("Output", (Output,), {"io_type": type_name})


class Boolean:
    """A switch."""

    io_type = "BOOLEAN"
    Output = _output("BOOLEAN")

    class Input(WidgetInput):
        """Boolean input."""

        io_type = "BOOLEAN"

        def __init__(
            self,
            id: str,
            *,
            display_name: str | None = None,
            optional: bool = False,
            tooltip: str | None = None,
            lazy: bool | None = None,
            default: bool | None = None,
            label_on: str | None = None,
            label_off: str | None = None,
            socketless: bool | None = None,
            force_input: bool | None = None,
        ) -> None:
            super().__init__(
                id,
                display_name=display_name,
                optional=optional,
                tooltip=tooltip,
                lazy=lazy,
                default=default,
                socketless=socketless,
                force_input=force_input,
            )
            self.label_on = label_on
            self.label_off = label_off


class Int:
    """An integer."""

    io_type = "INT"
    Output = _output("INT")

    class Input(WidgetInput):
        """Integer input. `control_after_generate` adds a second widget (fixed, increment, randomize)."""

        io_type = "INT"

        def __init__(
            self,
            id: str,
            *,
            display_name: str | None = None,
            optional: bool = False,
            tooltip: str | None = None,
            lazy: bool | None = None,
            default: int | None = None,
            min: int | None = None,
            max: int | None = None,
            step: int | None = None,
            control_after_generate: bool | None = None,
            display_mode: NumberDisplay | None = None,
            socketless: bool | None = None,
            force_input: bool | None = None,
        ) -> None:
            super().__init__(
                id,
                display_name=display_name,
                optional=optional,
                tooltip=tooltip,
                lazy=lazy,
                default=default,
                socketless=socketless,
                force_input=force_input,
            )
            self.min = min
            self.max = max
            self.step = step
            self.control_after_generate = control_after_generate
            self.display_mode = display_mode


class Float:
    """A real number."""

    io_type = "FLOAT"
    Output = _output("FLOAT")

    class Input(WidgetInput):
        """Float input. `step` and `round` concern the widget: a file may hold any value in range."""

        io_type = "FLOAT"

        def __init__(
            self,
            id: str,
            *,
            display_name: str | None = None,
            optional: bool = False,
            tooltip: str | None = None,
            lazy: bool | None = None,
            default: float | None = None,
            min: float | None = None,
            max: float | None = None,
            step: float | None = None,
            round: float | None = None,
            display_mode: NumberDisplay | None = None,
            socketless: bool | None = None,
            force_input: bool | None = None,
        ) -> None:
            super().__init__(
                id,
                display_name=display_name,
                optional=optional,
                tooltip=tooltip,
                lazy=lazy,
                default=default,
                socketless=socketless,
                force_input=force_input,
            )
            self.min = min
            self.max = max
            self.step = step
            self.round = round
            self.display_mode = display_mode


class String:
    """A text."""

    io_type = "STRING"
    Output = _output("STRING")

    class Input(WidgetInput):
        """Text input."""

        io_type = "STRING"

        def __init__(
            self,
            id: str,
            *,
            display_name: str | None = None,
            optional: bool = False,
            tooltip: str | None = None,
            lazy: bool | None = None,
            multiline: bool = False,
            placeholder: str | None = None,
            default: str | None = None,
            dynamic_prompts: bool | None = None,
            socketless: bool | None = None,
            force_input: bool | None = None,
        ) -> None:
            super().__init__(
                id,
                display_name=display_name,
                optional=optional,
                tooltip=tooltip,
                lazy=lazy,
                default=default,
                socketless=socketless,
                force_input=force_input,
            )
            self.multiline = multiline
            self.placeholder = placeholder
            self.dynamic_prompts = dynamic_prompts


class Combo:
    """One of a list of options."""

    io_type = "COMBO"
    Output = _output("COMBO")

    class Input(WidgetInput):
        """Combo input."""

        io_type = "COMBO"

        def __init__(
            self,
            id: str,
            options: Sequence[str] | Sequence[int] | type[Enum] | None = None,
            *,
            display_name: str | None = None,
            optional: bool = False,
            tooltip: str | None = None,
            lazy: bool | None = None,
            default: str | int | Enum | None = None,
            control_after_generate: bool | None = None,
            upload: UploadType | None = None,
            image_folder: FolderType | None = None,
            socketless: bool | None = None,
        ) -> None:
            super().__init__(
                id,
                display_name=display_name,
                optional=optional,
                tooltip=tooltip,
                lazy=lazy,
                default=default.value if isinstance(default, Enum) else default,
                socketless=socketless,
            )
            values = [member.value for member in options] if isinstance(options, type) else options
            self.options: list[Any] = list(values or [])
            self.control_after_generate = control_after_generate
            self.upload = upload
            self.image_folder = image_folder


class Hidden(str, Enum):
    """What a node may ask the host for; read as `cls.hidden.<name>`."""

    unique_id = "UNIQUE_ID"
    prompt = "PROMPT"
    extra_pnginfo = "EXTRA_PNGINFO"
    dynprompt = "DYNPROMPT"


@dataclass
class HiddenHolder:
    """The hidden inputs of the running node; None where the schema does not ask for one."""

    unique_id: str | None = None
    prompt: Any = None
    extra_pnginfo: Any = None
    dynprompt: Any = None


@dataclass
class Schema:
    """The definition of a node."""

    node_id: str
    display_name: str | None = None
    category: str = "sd"
    inputs: Sequence[Input] = field(default_factory=list)
    outputs: Sequence[Output] = field(default_factory=list)
    hidden: Sequence[Hidden] = field(default_factory=list)
    description: str = ""
    is_input_list: bool = False
    is_output_node: bool = False
    is_deprecated: bool = False
    is_experimental: bool = False
    is_api_node: bool = False
    not_idempotent: bool = False
    enable_expand: bool = False

    def validate(self) -> None:
        """Raise ValueError if an id occurs twice; the host refuses such a node too."""
        ids = [i.id for i in self.inputs] + [o.id for o in self.outputs if o.id is not None]
        doubled = sorted({name for name in ids if ids.count(name) > 1})
        if doubled:
            raise ValueError(
                f"ids of {self.node_id} must be unique over inputs and outputs, got {doubled} twice"
            )


class NodeOutput:
    """What `execute` returns: one value per output, and what the front end shows."""

    def __init__(
        self,
        *args: Any,
        ui: UIOutput | Mapping[str, Any] | None = None,
        expand: Mapping[str, Any] | None = None,
        block_execution: str | None = None,
    ) -> None:
        self.args = args
        self.ui = ui
        self.expand = expand
        self.block_execution = block_execution

    @property
    def result(self) -> tuple[Any, ...] | None:
        """The outputs, or None if there are none."""
        return self.args or None

    def __getitem__(self, index: int) -> Any:
        return self.args[index]


class UIOutput(ABC):
    """Something the front end shows below a node."""

    @abstractmethod
    def as_dict(self) -> dict[str, Any]:
        """The form in which the host sends it."""


class ComfyNode:
    """Base class of all nodes: class methods only, no state."""

    hidden: HiddenHolder = HiddenHolder()

    @classmethod
    def define_schema(cls) -> Schema:
        """The node's schema; every node defines it."""
        raise NotImplementedError(f"{cls.__name__} must define define_schema()")

    execute: ClassVar[Any]
    """`execute(cls, **inputs) -> NodeOutput`; every node defines it, with the inputs of its schema."""

    validate_inputs: ClassVar[Any] = None
    """Optional `validate_inputs(cls, ...) -> bool | str`: see `host/validate.py`."""

    fingerprint_inputs: ClassVar[Any] = None
    """Optional; tells ComfyUI whether a cached result is still good. Not called here: each run is new."""

    @classmethod
    def GET_SCHEMA(cls) -> Schema:  # noqa: N802  (the host's name)
        """The validated schema.

        Raises:
            ValueError: if the schema names an id twice.
        """
        schema = cls.define_schema()
        schema.validate()
        return schema


class ComfyExtension(ABC):
    """What a pack's `comfy_entrypoint` returns."""

    async def on_load(self) -> None:  # noqa: B027  (optional)
        """Run once, before the nodes are asked for."""

    @abstractmethod
    async def get_node_list(self) -> list[type[ComfyNode]]:
        """The pack's node classes."""
