"""Reads a workflow file in any of its forms.

The front end's format (`nodes` and `links`) stores what one sees: widget values by position, links by number,
muted and bypassed nodes, subgraphs. The API format is what the front end sends to be run: values and links by
name. A PNG saved by ComfyUI carries both: the API format wins, because it is what really made the picture and
needs no guess about positions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from PIL import Image

from ...messages import one_line
from .catalog import Catalog
from .front_end import from_front_end
from .normal import Graph, GraphError, from_api

DEEPEST = 100
"""Nesting of a workflow file, of which the front end's own have about ten."""
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


def read_file(path: Path) -> Mapping[str, Any]:
    """The workflow in a JSON or PNG file, in whichever format it is.

    Raises:
        GraphError: if there is none.
    """
    try:
        data = path.read_bytes()
    except OSError as err:
        raise GraphError(f"workflow must be a readable file, got {path} ({err.strerror})") from err
    text = _png_text(path) if data.startswith(b"\x89PNG") else data.decode("utf-8-sig", errors="replace")
    if not text.strip():
        raise GraphError(f"workflow must not be empty, got {path}; save or export it again")
    if _depth(text) > DEEPEST:
        raise GraphError(
            f"workflow must be nested at most {DEEPEST} deep, got {path}, which is deeper; save it again"
        )
    try:
        content = json.loads(text)
    except json.JSONDecodeError as err:
        where = f"line {err.lineno}, column {err.colno}: {err.msg}"
        raise GraphError(f"workflow must be JSON or a PNG with one, got {path} ({where})") from err
    except (ValueError, RecursionError, MemoryError) as err:  # a number of thousands of digits
        raise GraphError(f"workflow must be JSON that can be read, got {path} ({one_line(err)})") from err
    if not isinstance(content, dict):
        raise GraphError(f"workflow must be a JSON object, got a {type(content).__name__} in {path}")
    return content


def _depth(text: str) -> int:
    """How deep brackets are nested in a JSON text, at most; those inside strings do not count."""
    steps = accumulate(1 if sign in "[{" else -1 for sign in re.findall(r"[\[\]{}]", _STRING.sub("", text)))
    return max(steps, default=0)


def _png_text(path: Path) -> str:
    try:
        with Image.open(path) as image:
            image.load()  # the text may stand after the pixels
            chunks = image.info
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ) as err:  # what Pillow raises for broken files
        raise GraphError(f"workflow must be a readable PNG, got {path} ({err})") from err
    for key in ("prompt", "workflow"):
        if chunks.get(key):
            return str(chunks[key])
    raise GraphError(f"workflow must be inside the PNG as `prompt` or `workflow`, got neither in {path}")


def parse(content: Mapping[str, Any], catalog: Catalog) -> Graph:
    """The normal form of a workflow in either format.

    Widget values of nodes that `catalog` lacks are lost, as they have no names; `validate` reports those.

    Raises:
        GraphError: if the structure is broken. Whether the nodes make sense is checked by `validate`.
    """
    if isinstance(content.get("nodes"), list):
        try:
            return from_front_end(content, catalog)
        except GraphError:
            raise
        except (
            KeyError,
            TypeError,
            IndexError,
            AttributeError,
            ValueError,
            OverflowError,
            RecursionError,
        ) as err:
            what = f"{type(err).__name__}: {err}"
            raise GraphError(f"workflow must be as the front end saves it, got {what}") from err
    nodes = content["prompt"] if isinstance(content.get("prompt"), dict) else content
    if not nodes:
        raise GraphError("workflow must have nodes, got none")
    try:
        return from_api(nodes, catalog)
    except (ValueError, TypeError, OverflowError, RecursionError) as err:
        if isinstance(err, GraphError):
            raise
        raise GraphError(f"workflow must be in the API format, got {type(err).__name__}: {err}") from err
