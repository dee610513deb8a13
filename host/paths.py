"""Where things that a user names lie."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

PACK = Path(__file__).resolve().parents[1]


def first_existing(text: str, folders: list[Path]) -> Path:
    """The first of `folders / text` that exists, or the first of all if none does."""
    forms = [Path(form).expanduser() for form in forms_of(pasted(text))]
    candidates = [Path(os.path.normpath(folder / typed)) for typed in forms for folder in folders]
    return next((path for path in candidates if path.exists()), candidates[0])


def pasted(text: str) -> str:
    """A path as it was meant: without the blanks, line breaks and quotes around it, and no ``file://`` address."""
    text = text.strip()
    while len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip()
    if not text.lower().startswith("file:"):
        return text
    address = urlsplit(text)
    place = f"//{address.netloc}" if address.netloc not in ("", "localhost") else ""
    return url2pathname(place + address.path)


def forms_of(text: str) -> list[str]:
    """A path as it is, and as other machines and address bars write it."""
    forms = [text, unquote(text)]
    if os.sep == "/":
        forms += [form.replace("\\", "/") for form in forms]
    return list(dict.fromkeys(forms))
