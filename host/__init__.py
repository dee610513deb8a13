"""The one seam between the pack and the program that runs it.

`io` and `ui` are ComfyUI's V3 classes when ComfyUI is loaded, and stand-ins with the same names else;
`current()` is the running host (`Host`), `Cancelled` what it raises when the user asks to stop.
`serve(runs)` opens the routes that the pack's front end asks, where there is one.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or "comfy_api" not in sys.modules:
    from . import schema as io
    from .interface import Cancelled
    from .schema import ComfyExtension
    from .standalone import ui
    from .standalone.host import current, serve

    sampling: Any = None  # there is no MODEL to sample without ComfyUI
    models: Any = None
else:
    from comfy_api.latest import ComfyExtension, io, ui

    from .comfyui import model as models
    from .comfyui import sampling
    from .comfyui.host import Cancelled, current
    from .comfyui.run_routes import serve

from .interface import Host, Progress

__all__ = [
    "Cancelled",
    "ComfyExtension",
    "Host",
    "Progress",
    "current",
    "io",
    "models",
    "sampling",
    "serve",
    "ui",
]
