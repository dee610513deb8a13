"""Stand-in for `comfy_api.latest.ui`: what a node shows in the front end, here kept for the run's report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..schema import FolderType, UIOutput


class SavedResult(dict[str, str]):
    """One saved file as the front end names it."""

    def __init__(self, filename: str, subfolder: str, type: FolderType) -> None:
        super().__init__(filename=filename, subfolder=subfolder, type=type.value)


class SavedImages(UIOutput):
    """Pictures that were saved (`host.current().save_images` returns such a list)."""

    def __init__(self, results: Sequence[dict[str, str]], is_animated: bool = False) -> None:
        self.results = list(results)
        self.is_animated = is_animated

    def as_dict(self) -> dict[str, Any]:
        """The form in which the host sends it."""
        return {"images": self.results} | ({"animated": (True,)} if self.is_animated else {})


class PreviewImage(UIOutput):
    """Pictures `[N, H, W, 3]` to look at; saved as temporary files in ComfyUI, below `preview/` here."""

    def __init__(self, image: Tensor, animated: bool = False, cls: type | None = None) -> None:
        from .host import current

        self.values = current().save_images(image, "preview/preview", node=cls)
        self.animated = animated

    def as_dict(self) -> dict[str, Any]:
        """The form in which the host sends it."""
        return {"images": self.values, "animated": (self.animated,)}


class PreviewText(UIOutput):
    """A text to read below the node."""

    def __init__(self, value: str) -> None:
        self.value = value

    def as_dict(self) -> dict[str, Any]:
        """The form in which the host sends it."""
        return {"text": (self.value,)}
