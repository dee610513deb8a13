"""Rollout Trainer: LoRA training with scheduled sampling, inside a ComfyUI graph.

ComfyUI loads this folder as a custom node pack and calls `comfy_entrypoint`. Nothing else happens
at import, so that a command line or a test pays for what it uses and no more.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

WEB_DIRECTORY = "./web"

__version__ = "0.1.0"


def missing(err: ModuleNotFoundError) -> str:
    """What to do where a package of ``requirements.txt`` is not installed: the command, with ComfyUI's own Python."""
    requirements = Path(__file__).resolve().parent / "requirements.txt"
    return (
        f"Rollout Trainer needs the Python package {err.name}, which is not installed. Run this, then restart ComfyUI: "
        f'"{sys.executable}" -m pip install -r "{requirements}"'
    )


async def comfy_entrypoint() -> Any:
    """Return the pack's `ComfyExtension`; called by ComfyUI when it loads custom nodes."""
    try:
        from .nodes import RolloutTrainerExtension
    except ModuleNotFoundError as err:
        logging.getLogger(__name__).error(missing(err))
        raise
    except ImportError:
        # The host reports that the pack failed but drops the traceback, which names the missing package.
        logging.getLogger(__name__).exception("Rollout Trainer could not be imported")
        raise
    return RolloutTrainerExtension()
