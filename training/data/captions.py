"""Captions: read from the files that tools leave, with a trigger word, and in other orders of their tags.

A caption is a text beside its picture (``NAME.txt``, ``NAME.caption``, ``NAME.json``) or a row of a table in the folder
(``metadata.jsonl``, ``metadata.csv``, a ``.json`` as kohya's tools write it).
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

BESIDE = (".txt", ".caption", ".json")
"""Ends of the caption file of a picture, the one that goes first before the others."""
TABLES = ("metadata.jsonl", "metadata.csv")
"""Captions of a whole folder, the one that goes first before the other; after them, any ``.json`` of no picture."""
FILE_KEYS = ("file_name", "file", "image", "path", "filename")
TEXT_KEYS = ("text", "caption", "prompt", "tags")
BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def decoded(data: bytes) -> str:
    """The text in a file: UTF-8, or UTF-16 or UTF-32 that says so in its first bytes.

    Raises:
        ValueError: it is neither.
    """
    encoding = next((name for bom, name in BOMS.items() if data.startswith(bom)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as err:
        raise ValueError("it must be UTF-8 text, or UTF-16 with a byte order mark, but is not") from err
    if "\0" in text:  # UTF-16 without its mark is such "UTF-8"
        raise ValueError("it must be UTF-8 text, or UTF-16 with a byte order mark, but holds zero bytes")
    return text


def caption_in(name: str, data: bytes) -> str:
    """The caption in a file `name` beside a picture.

    Raises:
        ValueError: it holds none.
    """
    text = decoded(data)
    if not name.lower().endswith(".json"):
        return unbroken(text)
    try:
        value = json.loads(text)
    except ValueError as err:
        raise ValueError(f"it must be JSON, but is not ({err})") from err
    found = described(value)
    if found is None:
        raise ValueError(f"it must have one of {', '.join(TEXT_KEYS)}, but has none")
    return unbroken(found)


def described(value: Any) -> str | None:
    """The caption that a JSON value means: a text, or what stands under `TEXT_KEYS`; tags follow a caption."""
    if isinstance(value, str):
        return value
    if not isinstance(value, Mapping):
        return None
    parts = {key: value[key] for key in TEXT_KEYS if value.get(key)}
    texts = {k: ", ".join(map(str, v)) if isinstance(v, list) else str(v) for k, v in parts.items()}
    first = next((texts[k] for k in TEXT_KEYS[:-1] if k in texts), None)
    tags = texts.get("tags")
    if first is None or tags is None:
        return first if tags is None else tags
    return f"{first}, {tags}"


def table(name: str, data: bytes) -> Iterator[tuple[str, str | None, str]]:
    """The rows of a table of captions: (file, caption, "") of each, (place, None, fault) of each faulty one.

    Raises:
        ValueError: the file is no such table.
    """
    text = decoded(data)
    if name.endswith(".csv"):
        yield from _csv(text)
    elif name.endswith(".jsonl"):
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield _row(f"line {number}", line)
    else:
        try:
            rows = json.loads(text)
        except ValueError as err:
            raise ValueError(f"it is no JSON ({err})") from err
        if not isinstance(rows, dict) or not all(isinstance(row, (dict, str)) for row in rows.values()):
            raise ValueError("it is no table of captions: it must map file names to captions")
        for key, row in rows.items():
            caption = described(row)
            yield (key, unbroken(caption), "") if caption else (key, None, "it has no caption")


def _row(place: str, line: str) -> tuple[str, str | None, str]:
    try:
        value = json.loads(line)
    except ValueError:
        return place, None, "it is no JSON"
    file = next((value[k] for k in FILE_KEYS if k in value), None) if isinstance(value, dict) else None
    caption = described(value)
    if not isinstance(file, str) or caption is None:
        return place, None, f"it must have {FILE_KEYS[0]} and {TEXT_KEYS[0]}"
    return file, unbroken(caption), ""


def _csv(text: str) -> Iterator[tuple[str, str | None, str]]:
    rows = csv.DictReader(io.StringIO(text))
    names = rows.fieldnames or ()
    file = next((k for k in FILE_KEYS if k in names), None)
    caption = next((k for k in TEXT_KEYS if k in names), None)
    if file is None or caption is None:
        raise ValueError(
            f"it must have the columns {FILE_KEYS[0]} and {TEXT_KEYS[0]}, got {', '.join(names)}"
        )
    for row in rows:
        if row[file] and row[caption] is not None:
            yield row[file], unbroken(row[caption]), ""
        else:
            yield f"line {rows.line_num}", None, "it is too short"


def unbroken(text: str) -> str:
    """A caption without line breaks and doubled blanks."""
    return " ".join(text.split())


def with_trigger(caption: str, trigger: str) -> str:
    """`caption` behind the trigger word, unless it contains it as a word."""
    if not trigger or re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def caption_variants(caption: str, count: int, keep_tags: int) -> list[str]:
    """`count` captions: the one as written, then the same tags in orders that depend on the caption alone.

    Tags are what commas separate. A caption that has fewer than two tags to shuffle stays as written.

    Args:
        count: at least 1.
        keep_tags: so many tags at the front stay where they are.

    Raises:
        ValueError: an argument is out of range.
    """
    if count < 1 or keep_tags < 0:
        raise ValueError(
            f"caption_variants must be at least 1 and keep_tags at least 0, got {count} and {keep_tags}"
        )
    tags = [tag for tag in map(str.strip, caption.split(",")) if tag]
    kept, free = tags[:keep_tags], tags[keep_tags:]
    if len(free) < 2:
        return [caption] * count
    seed = int.from_bytes(hashlib.sha256(caption.encode()).digest()[:8], "big") >> 1  # a positive int64
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(free), generator=generator).tolist() for _ in range(count - 1)]
    return [caption, *(", ".join([*kept, *(free[i] for i in order)]) for order in orders)]
