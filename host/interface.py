"""What a node may ask of the program that runs it: the same few things in ComfyUI and on the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor


class Cancelled(BaseException):
    """The user asked to stop. Catch at a step boundary, save, raise again.

    Not an `Exception`, so that no `except Exception` on the way swallows it; ComfyUI 0.33 does the same.
    """


class HostError(RuntimeError):
    """A ComfyUI that runs a workflow for the command line did not start, stopped, or a node failed in it."""


MakeFacts = Callable[[], Mapping[str, Any]]
"""Makes what a node's panel shows, plain JSON values; called only when somebody will see it."""

Ask = Literal["save", "preview", "finish"]
"""What a user may ask of a training between two steps: a saved state, a film, to be done with it."""

Ending = Literal["done", "stopped", "failed"]
"""How a training ended: by itself or as asked to finish, by a stop of the whole graph, by an error."""


class PanelKeeper(Protocol):
    """A run as a host sees it that shows its panel: where the panel's newest facts are kept."""

    def keep_panel(self, facts: Mapping[str, Any]) -> None:
        """Keep `facts`, plain JSON values, in the place of those before; RuntimeError if the disk refuses."""
        ...


class Progress(Protocol):
    """One progress bar, from 0 to the `total` it was made with."""

    def update(
        self, done: int, text: str = "", image: Image.Image | None = None, facts: MakeFacts | None = None
    ) -> None:
        """Show that `done` units are finished, with a short `text` ("loss 0.123") and a preview picture.

        `facts` go to the node's panel in the front end, at most four times a second; a terminal has none.
        Call it at step boundaries: `Cancelled` is raised here when the user asked to stop.
        """
        ...

    def asked(self) -> frozenset[Ask]:
        """What the user asked of the training since the last call; nobody can in a terminal."""
        ...

    def end(self, facts: MakeFacts, state: Ending, error: str = "") -> None:
        """Show the panel's last facts: the training has ended and its state is saved.

        Args:
            error: what it failed with.
        """
        ...


class Host(Protocol):
    """The running program as nodes see it. Folders are created by whoever writes into them."""

    name: str
    """`comfyui` or `standalone`."""

    def output_dir(self) -> Path:
        """Where results go."""
        ...

    def input_dir(self) -> Path:
        """Where pictures that a graph names by file name lie."""
        ...

    def loras_dir(self) -> Path:
        """Where LoRA files go (in ComfyUI the folder that its LoRA loader lists)."""
        ...

    def runs_dir(self) -> Path:
        """Where training runs keep their states."""
        ...

    def cache_dir(self) -> Path:
        """Where encoded latents and texts may be kept between runs."""
        ...

    def resolve_path(self, text: str) -> Path:
        """What a user typed, as an absolute path.

        `~` is expanded. A relative path is looked for in the host's own folders and last in the pack, so that
        `demo/model` works from anywhere; if it is nowhere, the first candidate is returned.

        Raises:
            ValueError: whoever reaches the host may not look there.
        """
        ...

    def linked_text(self, name: str) -> str | None:
        """The text that comes through a link into the input `name` of the node that is asked now.

        For `fingerprint_inputs`, which hosts call before anything ran. None where it is not known by then.
        """
        ...

    def device(self) -> torch.device:
        """The device to compute on."""
        ...

    def progress(self, total: int, run: PanelKeeper | None = None) -> Progress:
        """Start a progress bar of `total` units for the node that runs now.

        Args:
            run: what a training node trains; what its panel shows is kept there too.
        """
        ...

    def cancel_requested(self) -> bool:
        """Whether the user asked to stop; raises nothing and keeps the request pending."""
        ...

    def check_cancelled(self) -> None:
        """Raise `Cancelled` if the user asked to stop."""
        ...

    def save_images(self, images: Tensor, prefix: str, node: type | None = None) -> list[dict[str, str]]:
        """Save `images: [N, H, W, 3]` in [0, 1] as PNG and return `{filename, subfolder, type}` for each.

        `prefix` may contain a sub-folder. `node` is the executing class (`cls`): its hidden inputs carry the
        workflow, which is written into the files.
        """
        ...

    def report(self, section: Mapping[str, Any]) -> None:
        """Add `section` to the run's `report.json`; nested mappings merge, other values replace.

        ComfyUI writes no report: return the same facts in `NodeOutput(ui=...)` for its history.
        """
        ...


class Runs(Protocol):
    """The runs on disk as a front end may see them; `name` is whatever a request says."""

    def listed(self) -> dict[str, Any]:
        """All `runs`, each with at least `name` and `training`, and what else lies there."""
        ...

    def details(self, name: str) -> dict[str, Any]:
        """One run; LookupError if there is none of that name."""
        ...

    def thumbnail(self, name: str) -> Path:
        """A JPEG file; LookupError if there is none."""
        ...

    def films(self, name: str) -> list[dict[str, Any]]:
        """What the films of a run measured, in the order of their steps; LookupError if there is no such run."""
        ...

    def frame(self, name: str, step: int, number: int) -> Path:
        """The JPEG file of one frame of a film; LookupError if there is none."""
        ...

    def samples(self, name: str) -> list[dict[str, Any]]:
        """What a run drew of the user's prompts, in the order of its steps; LookupError if there is no such run."""
        ...

    def sample(self, name: str, step: int, number: int) -> Path:
        """The JPEG file of one of those pictures; LookupError if there is none."""
        ...

    def panels(self, workflow: str) -> dict[str, dict[str, Any]]:
        """What the panels of a workflow's nodes showed last, by node, as `PanelKeeper.keep_panel` got it."""
        ...

    def save_lora(self, name: str, step: int) -> str:
        """Write the LoRA of a saved state and name the file; LookupError if there is no such state.

        ValueError if it cannot be made without the model, RuntimeError if the disk refuses.
        """
        ...

    def remove(self, name: str) -> None:
        """Delete a run; LookupError if there is none of that name, RuntimeError if it must stay."""
        ...

    def sweep(self) -> None:
        """Finish deletions that were interrupted."""
        ...
