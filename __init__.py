"""Rollout Trainer: LoRA training with scheduled sampling, inside a ComfyUI graph.

ComfyUI loads this folder as a custom node pack and calls `comfy_entrypoint`. Nothing else happens
at import, so that a command line or a test pays for what it uses and no more.
"""

from __future__ import annotations

import logging
from typing import Any

WEB_DIRECTORY = "./web"

__version__ = "0.1.0"


async def comfy_entrypoint() -> Any:
    """Return the pack's `ComfyExtension`; called by ComfyUI when it loads custom nodes."""
    try:
        from .nodes import RolloutTrainerExtension
    except ImportError:
        # The host reports that the pack failed but drops the traceback, which names the missing package.
        logging.getLogger(__name__).exception("Rollout Trainer could not be imported")
        raise
    return RolloutTrainerExtension()
