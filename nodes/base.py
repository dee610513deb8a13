"""What all nodes share: memory that runs out has words, on either host."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from ..host import io
from ..messages import OutOfRAMError, without_words


class Node(io.ComfyNode):
    """A node of the pack. ComfyUI shows an error's text alone, which Python leaves empty when memory runs out."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = vars(cls).get("execute")
        # ComfyUI runs locked copies of a class, made of what is in it: those have the method already.
        if own is not None and not hasattr(own.__func__, "__wrapped__"):
            cls.execute = classmethod(_in_words(own.__func__))


def _in_words(execute: Callable[..., Any]) -> Callable[..., Any]:
    """That method; it raises `OutOfRAMError`, with the node's name, where the computer's memory runs out."""

    @wraps(execute)
    def worded(cls: type[Node], *args: Any, **kwargs: Any) -> Any:
        try:
            return execute(cls, *args, **kwargs)
        except (MemoryError, RuntimeError) as err:
            if not without_words(err):
                raise
            raise OutOfRAMError(f"in {cls.define_schema().display_name}") from err

    return worded
