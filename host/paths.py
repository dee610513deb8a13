"""Where things that a user names lie."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

PACK = Path(__file__).resolve().parents[1]


def first_existing(text: str, folders: list[Path]) -> Path:
    """The first of `folders / text` that exists, or the first of all if none does.

    Raises:
        ValueError: no disk can have it, or it may not be looked at.
    """
    forms = [_expanded(form) for form in forms_of(pasted(text))]
    candidates = [Path(os.path.normpath(folder / typed)) for typed in forms for folder in folders]
    found = next((path for path in candidates if os.path.exists(path)), None)
    if found is None:
        _check(candidates[0], text)
    return found or candidates[0]


def _expanded(text: str) -> Path:
    """A path whose ``~`` is the home folder, if there is such a user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def _check(path: Path | str, text: str) -> None:
    """Raise ValueError if no disk can have a path, or if it may not be looked at."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as err:
        why = getattr(err, "strerror", None) or err
        raise ValueError(f"a path must be one that can be read, got {pasted(text)!r:.120} ({why})") from err


def first_allowed(text: str, folders: Sequence[Path], allowed: Sequence[Path]) -> Path:
    """As `first_existing`, for whoever may look into the folders `allowed` alone.

    What lies elsewhere is not touched, so that nobody learns whether it exists; a link counts as what it leads to.

    Raises:
        ValueError: it lies elsewhere, or a link in it leads there.
    """
    roots = [os.path.realpath(root) for root in allowed]
    spelt = [
        *roots,
        *(os.path.abspath(root) for root in allowed),
    ]  # the folder of a host may itself be a link
    if "\0" in text:
        raise ValueError(f"a path must be one that can be read, got {text!r:.120}")
    typed = [Path(form) for form in forms_of(pasted(text))]
    own = [_expanded(str(form)) if form.parts[:1] == ("~",) else form for form in typed]
    places = [os.path.normpath(folder / form) for form in own for folder in folders]
    near = [p for p in places if _is_inside(p, spelt) and _is_inside(os.path.realpath(p), roots)]
    found = next((p for p in near if os.path.exists(p)), near[0] if near else None)
    if found is None:
        raise ValueError(f"a path must lie {INSIDE}, got {pasted(text)!r:.120}; {ALLOWING}")
    _check(found, text)
    for link in links_in(found):
        if not _is_inside(os.path.realpath(link), roots):
            name = os.path.relpath(link, found)
            raise ValueError(f"links must lead to what lies {INSIDE}, but {name!r:.120} does not; {ALLOWING}")
    return Path(found)


INSIDE = "in the input, output or model folders of this ComfyUI, which other machines can reach"
ALLOWING = "move it there, or let the owner of the machine name its folder in ROLLOUT_TRAINER_FOLDERS"


def _is_inside(path: str, roots: Sequence[str]) -> bool:
    return any(Path(path).is_relative_to(root) for root in roots)


def links_in(folder: str) -> Iterator[str]:
    """All links at any depth of `folder`; they are not followed, and what cannot be read has none."""
    for place, names, files in os.walk(folder, followlinks=False):
        yield from (path for name in (*names, *files) if os.path.islink(path := os.path.join(place, name)))


def is_loopback(listen: str) -> bool:
    """Whether a server that listens on these addresses, separated by commas, is reached from its own machine alone."""
    names = [name.strip() for name in listen.split(",") if name.strip()]

    def own(name: str) -> bool:
        try:
            return ipaddress.ip_address(name.strip("[]")).is_loopback
        except ValueError:
            return name == "localhost"

    return all(map(own, names))


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
