"""The host for ComfyUI, 0.3.64 and later."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import folder_paths
import torch
from comfy import model_management
from comfy.cli_args import args
from comfy.utils import ProgressBar
from comfy_api.latest import io, ui
from comfy_execution.utils import get_executing_context
from PIL import Image
from torch import Tensor

from ..interface import Ask, Ending, MakeFacts, PanelKeeper, Progress
from ..paths import PACK, first_allowed, first_existing, is_loopback
from ..report import FOLDERS_VARIABLE, REPORT_VARIABLE, merge, write
from ..terminal import TerminalBar
from .links import text_behind
from .panel import Panel, prompt_server

if TYPE_CHECKING:
    from ..interface import Cancelled
else:
    # The very class that the executor waits for: what a training loop catches, it can raise again as it is.
    Cancelled = model_management.InterruptProcessingException

PREVIEW_SIZE = 512
"""Longest side in pixels of a preview sent to the front end, ComfyUI's own default."""


def given_folders() -> list[Path]:
    """Folders that the owner of the machine names in the environment, beside ComfyUI's own."""
    return [Path(name) for name in os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep) if name]


class ComfyHost:
    """A `Host` on ComfyUI's own folders, progress events and interrupt flag."""

    name = "comfyui"

    def __init__(self) -> None:
        self._sections: dict[str, Any] = {}

    def output_dir(self) -> Path:
        """ComfyUI's output folder."""
        return Path(folder_paths.get_output_directory())

    def input_dir(self) -> Path:
        """ComfyUI's input folder."""
        return Path(folder_paths.get_input_directory())

    def loras_dir(self) -> Path:
        """`output/loras`, which the LoRA loader lists and core's own trainer saves to."""
        return self.output_dir() / "loras"

    def runs_dir(self) -> Path:
        """`output/rollout_trainer/runs`, which users find and which outlives a restart."""
        return self.output_dir() / "rollout_trainer" / "runs"

    def cache_dir(self) -> Path:
        """`output/rollout_trainer/cache`; ComfyUI empties its temp folder at every start."""
        return self.output_dir() / "rollout_trainer" / "cache"

    def resolve_path(self, text: str) -> Path:
        """Look for `text` in ComfyUI's input, output, models and base folders and in the pack.

        Raises:
            ValueError: other machines can reach this ComfyUI, and it lies in none of its `open_folders`.
        """
        bases = (folder_paths.models_dir, folder_paths.base_path)
        folders = [*given_folders(), self.input_dir(), self.output_dir(), *map(Path, bases), PACK]
        if is_loopback(str(getattr(args, "listen", ""))):
            return first_existing(text, folders)
        return first_allowed(text, folders, self.open_folders())

    def open_folders(self) -> list[Path]:
        """What whoever reaches the server may name: input, output, models, the demo, and what the owner adds."""
        models = [
            folder
            for kind, (folders, _) in folder_paths.folder_names_and_paths.items()
            if kind != "custom_nodes"
            for folder in folders
        ]
        own = [self.input_dir(), self.output_dir(), Path(folder_paths.models_dir), PACK / "demo"]
        return [*given_folders(), *own, *map(Path, models)]

    def linked_text(self, name: str) -> str | None:
        """Follow the link in the prompt that runs: ComfyUI passes None for linked inputs."""
        context, server = get_executing_context(), prompt_server()
        if context is None or server is None:
            return None
        running = server.prompt_queue.get_current_queue_volatile()[0]
        prompts = {prompt_id: prompt for _, prompt_id, prompt, *_ in running}
        return text_behind(prompts.get(context.prompt_id, {}), context.node_id, name)

    def device(self) -> torch.device:
        """The device that ComfyUI computes on."""
        device: torch.device = model_management.get_torch_device()
        return device

    def progress(self, total: int, run: PanelKeeper | None = None) -> Progress:
        """Start the running node's progress bar."""
        return _NodeProgress(total, run)

    def cancel_requested(self) -> bool:
        """Whether the user pressed cancel; the request stays pending."""
        return bool(model_management.processing_interrupted())

    def check_cancelled(self) -> None:
        """Raise `Cancelled` if the user pressed cancel; that clears the request, as ComfyUI does itself."""
        model_management.throw_exception_if_processing_interrupted()

    def save_images(self, images: Tensor, prefix: str, node: type | None = None) -> list[dict[str, str]]:
        """Save below the output folder, with the workflow inside when `node` is given."""
        saved: list[dict[str, str]] = ui.ImageSaveHelper.save_images(
            images, filename_prefix=prefix, folder_type=io.FolderType.output, cls=node, compress_level=4
        )
        return saved

    def report(self, section: Mapping[str, Any]) -> None:
        """Write into the file that `--comfyui` names.

        A user's own ComfyUI has none: return the same facts in `NodeOutput(ui=...)`.
        """
        path = os.environ.get(REPORT_VARIABLE)
        if path:
            merge(self._sections, section)
            write(Path(path), self._sections)


class _NodeProgress:
    """Progress, text and preview of one node, in the front end and, as core's samplers do, in the terminal."""

    def __init__(self, total: int, run: PanelKeeper | None) -> None:
        context = get_executing_context()
        self._node_id = None if context is None else context.node_id
        self._total = total
        self._bar = ProgressBar(total, node_id=self._node_id)
        self._terminal = TerminalBar(total)
        self._panel = None
        if context is not None and run is not None:
            self._panel = Panel(context.prompt_id, context.node_id, run)

    def update(
        self, done: int, text: str = "", image: Image.Image | None = None, facts: MakeFacts | None = None
    ) -> None:
        self._terminal.show(done, text)
        if facts is not None and self._panel is not None:
            self._panel.show(facts)
        # ProgressBar looks at the interrupt flag only when it sends, in newer hosts a few times a second.
        model_management.throw_exception_if_processing_interrupted()
        watched = self._panel is not None and self._panel.watched
        preview = None if image is None or watched else ("JPEG", image, PREVIEW_SIZE)
        self._bar.update_absolute(done, self._total, preview)
        if text and self._node_id is not None and not watched:
            _send_text(text, self._node_id)

    def asked(self) -> frozenset[Ask]:
        return frozenset() if self._panel is None else self._panel.asked()

    def end(self, facts: MakeFacts, state: Ending, error: str = "") -> None:
        self._terminal.close()
        if self._panel is not None:
            self._panel.end(facts, state, error)


def _send_text(text: str, node_id: str) -> None:
    """Show `text` below the node; there is no server when ComfyUI's modules are used without it."""
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_progress_text(text, node_id, server.client_id)


_host = ComfyHost()


def current() -> ComfyHost:
    """The running host."""
    return _host
