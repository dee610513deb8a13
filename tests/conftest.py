"""Make this checkout importable as `rollout_trainer`, whatever its folder is called, installed or not."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

spec = importlib.util.spec_from_file_location(
    "rollout_trainer", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
)
assert spec is not None
assert spec.loader is not None
package = importlib.util.module_from_spec(spec)
sys.modules["rollout_trainer"] = package
spec.loader.exec_module(package)
