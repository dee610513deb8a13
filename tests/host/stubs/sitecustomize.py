"""Lets a ComfyUI without torchvision, torchaudio and what its video and filter nodes use start, for tests alone.

ComfyUI imports names from them while it starts; a CPU test machine often lacks the first two, and a machine that the
rest must be carried to (tools/gpu_prepare.py) lacks all. Python runs
this file at start-up when its folder is on PYTHONPATH, which only the host's process gets. The finder
stands last, so that a package that is installed is used; of one that is not, any name can be imported,
and calling it raises.
"""

import importlib.abc
import importlib.machinery
import sys
import types

NAMES = {"torchvision", "torchaudio", "av", "kornia", "spandrel"}


class Absent(type):
    """Metaclass of the stand-in classes: their attributes are stand-ins as well, calling one raises."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return absent(f"{cls.__qualname__}.{name}")

    def __call__(cls, *args, **kwargs):
        raise RuntimeError(f"{cls.__qualname__} is a stand-in: its package is not installed")


def absent(name):
    """Return a class that can be imported, subclassed and annotated with, but not used."""
    return Absent(name.rpartition(".")[2], (), {"__qualname__": name})


class StandIn(types.ModuleType):
    """A module that has every public name."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        value = absent(f"{self.__name__}.{name}")
        setattr(self, name, value)
        return value


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every module at or under NAMES that nobody else found."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in NAMES:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        return StandIn(spec.name)

    def exec_module(self, module):
        module.__version__ = "0.0.0"
        module.__path__ = []


sys.meta_path.append(Finder())
