"""Messages as a terminal may show them: what comes from files may hold anything."""

from __future__ import annotations

LONGEST = 300
"""Characters of a message."""


def one_line(text: object) -> str:
    """A message as one printable line of at most `LONGEST` characters; an error without words is named by its kind."""
    said = str(text) or (type(text).__name__ if isinstance(text, BaseException) else "")
    shown = "".join(c if c.isprintable() else " " for c in " ".join(said[: 20 * LONGEST].split()))
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 3]}..."
