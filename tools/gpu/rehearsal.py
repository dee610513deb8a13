"""Parts that fail on purpose: does the check survive what it must?"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpu_check import Check


def run(check: Check, option: str) -> None:
    """Say something, and then end as `option` says."""
    check.tell("begun", True, part_of=option)
    if option == "raises":
        raise ValueError("on purpose")
    if option == "dies":
        os._exit(3)
    if option == "hangs":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (check.work / "child").write_text(str(child.pid))
        time.sleep(600)
