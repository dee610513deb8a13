"""What errors say, for every layer: as one printable line, and in words where Python and torch have none."""

from __future__ import annotations

LONGEST = 300
"""Characters of a message."""


def one_line(text: object) -> str:
    """A message as one printable line of at most `LONGEST` characters: what comes from files may hold anything.

    An error without words is named by its kind.
    """
    said = str(text) or (type(text).__name__ if isinstance(text, BaseException) else "")
    shown = "".join(c if c.isprintable() else " " for c in " ".join(said[: 20 * LONGEST].split()))
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 3]}..."


class OutOfRAMError(MemoryError):
    """The computer's memory ran out, in words."""

    def __init__(self, doing: str) -> None:
        super().__init__(
            f"out of memory (RAM) {doing}; close other programs, or use smaller pictures, a smaller batch_size or a "
            "smaller model"
        )


def without_words(err: BaseException) -> bool:
    """Whether an error means that the computer's memory ran out, and does not say so in words that help.

    Python's own has none at all; torch's allocator names its source file and a number of bytes.
    """
    if isinstance(err, MemoryError):
        return not isinstance(err, OutOfRAMError)
    return isinstance(err, RuntimeError) and "DefaultCPUAllocator" in str(err)
