"""Dataset folders: which file is what, and one line for each that is not used.

A folder holds pictures and clips with captions beside them or in a table (`captions`) and, if wanted, masks
(``NAME.mask.png``, white is trained). Subfolders named ``N_anything`` hold more of the same, each picture N times an
epoch; other subfolders are read only where that is asked for.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .captions import BESIDE, TABLES, caption_in, table, with_trigger
from .clips import ANIMATED, MOVIES, Clip, Cutting, glance_at_clip, look_at_clip
from .facts import Fact, Facts, Stamp, line_of, stamp
from .images import Control, ImageDataset, Items, Role, look, look_at_mask

PICTURES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".avif", ".tif", ".tiff",
)  # fmt: skip
"""Ends of the names of pictures that are read, whatever is in them."""
FOREIGN = (".heic", ".heif", ".jxl", ".jp2", ".psd", ".svg", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw")
"""Pictures that are not."""
MASK = ".mask.png"
REPEATS = re.compile(r"(\d+)_.*")
MOST_REPEATS = 1_000_000
SYSTEM = ("thumbs.db", "ehthumbs.db", "desktop.ini")
"""What operating systems leave in folders, beside files whose names begin with a dot."""
MOST_CONTROLS = 9
"""Of one picture in one folder, beside the one of its own name."""
ALIKE = 3
"""More files left out for one reason are one line."""

DataProgress = Callable[[int, int], None]
"""``progress(done, total)``; may raise to cancel."""


def read_image_folder(
    folder: str | Path,
    default_caption: str | None = None,
    trigger: str = "",
    alpha_masks: bool = False,
    *,
    nested: bool = False,
    known: Path | None = None,
    progress: DataProgress | None = None,
    controls: Sequence[tuple[Path, Role]] = (),
    cutting: Cutting | None = None,
) -> ImageDataset:
    """Find the pictures and clips of `folder` and read their captions; each is decoded once to be sure of it.

    Args:
        folder: the dataset folder, see the module's text.
        default_caption: caption of pictures that have none; None: each must have one.
        trigger: put before every caption that does not contain it as a word.
        alpha_masks: train only where a picture is opaque, unless it has a mask file.
        nested: read subfolders of any name at any depth.
        known: folder where it is kept what is known of files, so that they are looked at once.
        progress: called after each picture.
        controls: folders with pictures of the same names, and what those are to the pictures. Of one picture there may
            be several: ``NAME``, ``NAME_1``, ``NAME_2`` and so on.
        cutting: how samples are cut out of clips; None: as by default.

    Raises:
        ValueError: no such folder, no pictures in it, none that can be used, or a picture without a caption.
    """
    reader = _Reader(Path(folder), default_caption, trigger, known)
    reader.controls = [_Controls(path, role, known) for path, role in controls]
    places = reader.places(nested)
    total = sum(len(place.pictures) for place in places)
    items = Items(reader.folder)
    for place in places:
        for name in place.pictures:
            reader.put(items, place, name)
            if progress is not None:
                progress(reader.done, total)
    reader.facts.close()
    for own in reader.controls:
        own.close(reader.left)
    reader.refuse_bare()
    if not items:
        raise ValueError(reader.nothing())
    return ImageDataset(reader.folder, items.close(), reader.left.lines(), alpha_masks, cutting or Cutting())


def check_image_folder(
    folder: str | Path, default_caption: str | None = None, nested: bool | None = None
) -> None:
    """Find faults of a folder that can be seen in a moment: its pictures are decoded up to the first that can be.

    Args:
        nested: None is not known yet: a folder is then right if it is right in either case.

    Raises:
        ValueError: as `read_image_folder`, broken pictures excepted.
    """
    if nested is None:
        try:
            check_image_folder(folder, default_caption, nested=False)
        except ValueError as err:
            try:
                check_image_folder(folder, default_caption, nested=True)
            except ValueError:
                raise err from None
        return
    reader = _Reader(Path(folder), default_caption, "", None)
    reader.look_at_clip = glance_at_clip
    items = Items(reader.folder)
    for place in reader.places(nested):
        for name in place.pictures:
            if items:
                reader.caption(place, name)
            else:
                reader.put(items, place, name)
    reader.refuse_bare()
    if not items:
        raise ValueError(reader.nothing())


def folder_stamp(folder: Path) -> str:
    """A text that is another one when a file in `folder`, at any depth, comes, goes or changes."""
    parts = []
    for place, names, files in os.walk(folder, followlinks=False):
        names.sort()
        for name in sorted(files):
            try:
                stat = os.stat(os.path.join(place, name))
            except OSError:
                continue
            parts.append(f"{place}/{name}:{stat.st_mtime_ns}:{stat.st_size}")
    return ",".join(parts)


# --- what lies where -----------------------------------------------------------------------------


@dataclass
class _Place:
    """A folder whose pictures are read."""

    name: str
    """Before the names of its files: "" or ``10_cat/``."""
    repeats: int
    files: dict[str, int]
    """By name, each with the number of its stamp."""
    stamps: array[int]
    """Three numbers each."""
    subs: list[str]
    pictures: list[str] = field(default_factory=list)
    stems: set[str] = field(default_factory=set)
    """Of the pictures."""
    tables: list[str] = field(default_factory=list)
    captions: dict[str, str] = field(default_factory=dict)
    """From tables, by file name with or without its end."""
    beside: dict[str, str] = field(default_factory=dict)
    """Caption files whose ends have large letters, by name with small ones."""

    def stamp(self, name: str) -> Stamp:
        """How a file looks from outside."""
        row = 3 * self.files[name]
        size, changed, touched = self.stamps[row : row + 3]
        return size, changed, touched

    def caption_files(self, picture: str) -> list[str]:
        """The caption files of a picture, the one that goes first before the others."""
        stem = _stem(picture)
        names = [stem + end for end in BESIDE]
        found = [name if name in self.files else self.beside.get(name) for name in names]
        return [name for name in found if name is not None]


class _LeftOut:
    """Files that are not used, by reason: many of one reason are one line."""

    def __init__(self) -> None:
        self._strays: dict[tuple[str, str], list[str]] = {}
        self._broken: dict[tuple[str, str], list[str]] = {}
        self._counts: dict[tuple[str, str], int] = {}

    def add(self, name: str, reason: str, broken: bool = False) -> None:
        """A file, for a reason; `broken`: it would have been used."""
        group = (reason, os.path.splitext(name)[1].lower())
        names = (self._broken if broken else self._strays).setdefault(group, [])
        self._counts[group] = self._counts.get(group, 0) + 1
        if len(names) <= ALIKE:
            names.append(name)

    def lines(self) -> tuple[str, ...]:
        """A line for each file, or for each reason that many share."""
        out = []
        for groups in (self._strays, self._broken):
            for group, names in groups.items():
                if self._counts[group] > ALIKE:
                    out.append(f"{names[0]} and {self._counts[group] - 1} more: {group[0]}")
                else:
                    out += [f"{name}: {group[0]}" for name in names]
        return tuple(out)


class _Reader:
    """One reading of a dataset folder."""

    def __init__(self, folder: Path, default: str | None, trigger: str, known: Path | None) -> None:
        self.folder = folder
        self.default, self.trigger = default, trigger
        if not folder.is_dir():
            raise ValueError(f"dataset folder {folder}: {_no_folder(folder)}")
        self.left = _LeftOut()
        self.facts = Facts(folder, known)
        self.bare: list[str] = []
        self.done = 0
        self.controls: list[_Controls] = []
        self.look_at_clip = look_at_clip

    def places(self, nested: bool) -> list[_Place]:
        """The folders whose pictures are read: the dataset folder first, then the others by name."""
        root = self._scan("", 1)
        self._sort(root)
        out = [root]
        for place in self._below(root, nested, {os.path.realpath(self.folder)}):
            self._sort(place)
            out.append(place)
        for place in reversed(out):  # the tables that lie beside their pictures before those further up
            for name in sorted(place.tables, key=lambda n: (*TABLES, n).index(n)):
                self._read_table(place, name, {p.name: p for p in out})
        return out

    def put(self, items: Items, place: _Place, name: str) -> None:
        """Look at a picture, its mask and its caption, and put it in unless something is wrong."""
        self.done += 1
        if _is_movie(name):
            fact = self._fact(place, name, self.look_at_clip, "it is left out")
        else:
            fact = self._fact(
                place, name, lambda path: look(path.read_bytes()), "it cannot be read as a picture"
            )
        caption = None if fact is None else self.caption(place, name)
        if fact is None or caption is None:
            return
        clip = self._clip(place, name, fact)
        mask, seen = _stem(name) + MASK, None
        if mask in place.files:
            seen = self._fact(
                place,
                mask,
                lambda path: look_at_mask(path.read_bytes()),
                "its picture is left out, as it cannot be read",
            )
            if seen is None:
                return
            if seen["empty"]:
                self.left.add(place.name + mask, "its picture is left out, as it is all black", True)
                return
        found = None if seen is None else (place.name + mask, seen["digest"])
        size = (fact["width"], fact["height"])
        controls: list[Control] = []
        for own in self.controls:
            of_it = own.of(place.name + name, size, self.left)
            if of_it is None:
                return
            controls += of_it
        items.append(place.name + name, caption, fact, place.repeats, found, tuple(controls), clip)

    def _clip(self, place: _Place, name: str, fact: Fact) -> Clip | None:
        """What is known of a file as a clip; None: it is a picture, which is noted if it has more frames."""
        if fact["frames"] == 1:
            return None
        if _is_movie(name):
            return Clip(fact["frames"], fact["seconds"])
        why = ""
        if name.lower().endswith(ANIMATED):
            path = self.folder / (place.name + name)
            try:
                own = self.facts.of(
                    f"{place.name}{name} as a clip", place.stamp(name), lambda: self.look_at_clip(path)
                )
            except (ValueError, OSError) as err:
                why = f" ({line_of(err)})"
            else:
                return Clip(own["frames"], own["seconds"])
        self.left.add(place.name + name, f"only the first of its {fact['frames']} frames is used{why}")
        return None

    def caption(self, place: _Place, name: str) -> str | None:
        """The caption of a picture; None: it has none that can be used, which is noted."""
        beside = place.caption_files(name)
        for other in beside[1:]:
            self.left.add(place.name + other, f"it is not read, as {BESIDE[0]} goes before, then {BESIDE[1]}")
        if beside:
            fact = self._fact(
                place,
                beside[0],
                lambda path: {"text": caption_in(beside[0], path.read_bytes())},
                "its picture is left out",
            )
            text = None if fact is None else fact["text"]
            return None if text is None else with_trigger(text, self.trigger)
        text = place.captions.get(name, place.captions.get(_stem(name), self.default))
        if text is None:
            self.bare.append(place.name + name)
            return None
        return with_trigger(text, self.trigger)

    def refuse_bare(self) -> None:
        """Raise ValueError if pictures have no caption."""
        if self.bare:
            raise ValueError(
                f"dataset folder {self.folder}: {self.bare[0]} must have a caption file "
                f"{Path(self.bare[0]).stem}.txt ({len(self.bare)} pictures have none); write it, or set a default "
                "caption"
            )

    def nothing(self) -> str:
        """Why there is nothing to train on."""
        lines = self.left.lines()
        kinds = ", ".join(end[1:] for end in PICTURES + MOVIES)
        why = f"none is usable: {lines[0]}" if lines else "it has none"
        return f"dataset folder {self.folder}: it must hold pictures or clips ({kinds}), but {why}"

    def _fact(self, place: _Place, name: str, judge: Callable[[Path], Fact], otherwise: str) -> Fact | None:
        """What is known of a file; None: it cannot be read, which is noted."""
        own = place.name + name
        try:
            return self.facts.of(own, place.stamp(name), lambda: judge(self.folder / own))
        except Exception as err:  # Pillow raises anything from OSError to SyntaxError on a broken file
            self.left.add(place.name + name, f"{otherwise} ({line_of(err)})", True)
            return None

    def _scan(self, name: str, repeats: int) -> _Place:
        """What lies in a folder, sorted as its names are sorted elsewhere."""
        files: dict[str, int] = {}
        stamps, subs = array("q"), []
        with os.scandir(self.folder / name) as entries:
            for entry in entries:
                try:
                    if entry.is_dir():
                        subs.append(entry.name)
                    else:
                        stamps.extend(stamp(entry.stat()))
                        files[entry.name] = len(files)
                except OSError as err:  # a link to nowhere
                    self.left.add(name + entry.name, f"it cannot be read ({err.strerror})")
        ordered = dict(sorted(files.items(), key=_by_name))
        return _Place(name, repeats, ordered, stamps, sorted(subs, key=_folded))

    def _below(self, place: _Place, nested: bool, seen: set[str]) -> Iterator[_Place]:
        for sub in place.subs:
            name = f"{place.name}{sub}/"
            match = REPEATS.fullmatch(sub)
            counted = match is not None and (nested or not place.name)
            real = os.path.realpath(self.folder / name)
            if sub.startswith(".") or real in seen:
                continue
            if match and counted and not 0 < int(match[1]) <= MOST_REPEATS:
                often = (
                    "0 times an epoch" if int(match[1]) == 0 else f"more than {MOST_REPEATS} times an epoch"
                )
                self.left.add(name, f"it is left out, as its name says {often}")
            elif counted or nested:
                found = self._scan(name, int(match[1]) if match else place.repeats)
                yield found
                yield from self._below(found, nested, seen | {real})
            elif _holds_pictures(self.folder / name):
                hint = "" if place.name else f"name it N_{sub} to have them N times an epoch, or "
                self.left.add(name, f"its pictures are not read; {hint}switch subfolders on")

    def _sort(self, place: _Place) -> None:
        """Tell pictures from captions, masks and tables, and name the rest."""
        place.pictures = [name for name in place.files if _is_picture(name) or _is_movie(name)]
        place.stems = {_stem(name) for name in place.pictures}
        used = set(place.pictures)
        for name in place.files:
            lower = name.lower()
            if name in used or name.startswith(".") or lower in SYSTEM:
                continue
            stem, end = _stem(name), os.path.splitext(lower)[1]
            if lower.endswith(MASK):
                if name[: -len(MASK)] not in place.stems:
                    self.left.add(place.name + name, "there is no picture of that name")
            elif stem in place.stems and end in BESIDE:
                if name != stem + end:
                    place.beside[stem + end] = name
            elif lower in TABLES or end == ".json":
                place.tables.append(name)
            elif end in BESIDE:
                self.left.add(place.name + name, "there is no picture of that name")
            elif end in FOREIGN:
                self.left.add(
                    place.name + name, "pictures of this kind are not read; convert it to png or jpg"
                )
            else:
                self.left.add(place.name + name, "files of this kind are not read")

    def _read_table(self, place: _Place, name: str, places: Mapping[str, _Place]) -> None:
        try:
            rows = list(table(name, (self.folder / (place.name + name)).read_bytes()))
        except (OSError, ValueError) as err:
            self.left.add(place.name + name, line_of(err))
            return
        for file, caption, fault in rows:
            if caption is None:
                self.left.add(place.name + name, f"{file}: {fault}")
                continue
            above, _, own = file.replace("\\", "/").rpartition("/")
            of = places.get(f"{place.name}{above}/", place)
            if own not in of.files and own not in of.stems:
                self.left.add(place.name + name, f"it has a caption of {file}, which is not there")
            of.captions.setdefault(own, caption)


class _Controls:
    """A folder of controls."""

    def __init__(self, folder: Path, role: Role, known: Path | None) -> None:
        if not folder.is_dir():
            raise ValueError(f"control folder {folder}: {_no_folder(folder)}")
        self.folder, self.role = folder, role
        self.facts = Facts(folder, known)
        self.names: dict[str, list[str]] = {}
        for above, _, files in os.walk(folder):
            place = Path(above).relative_to(folder).as_posix()
            for name in sorted(filter(_is_picture, files), key=_number):
                stem = ("" if place == "." else place + "/") + _stem(name)
                self.names.setdefault(stem, []).append(os.path.splitext(name)[1])
        self.used: set[str] = set()

    def of(self, name: str, size: tuple[int, int], left: _LeftOut) -> list[Control] | None:
        """The controls of a picture; None: one of them cannot be used, which is noted."""
        stem, out = _stem(name), []
        stems = [stem, *(f"{stem}_{i}" for i in range(1, MOST_CONTROLS + 1))]
        for own in [s for s in stems if s in self.names]:
            self.used.add(own)
            file = own + self.names[own][0]
            path = self.folder / file
            try:
                seen = self.facts.of(file, stamp(path.stat()), lambda path=path: look(path.read_bytes()))  # type: ignore[misc]
            except Exception as err:  # as of a picture
                left.add(
                    name, f"it is left out, as its control {path.name} cannot be read ({line_of(err)})", True
                )
                return None
            if self.role != "reference" and not _alike(size, (seen["width"], seen["height"])):
                shape = f"{seen['width']}x{seen['height']}, not of the shape of {size[0]}x{size[1]}"
                left.add(name, f"it is left out, as its {self.role} {path.name} is {shape}", True)
                return None
            out.append(Control(path, self.role, seen["width"], seen["height"], seen["digest"]))
        if not out:
            left.add(name, f"it has no {self.role} in {self.folder.name}/ and is trained without", True)
        return out

    def close(self, left: _LeftOut) -> None:
        """Name what belongs to no picture."""
        self.facts.close()
        for stem, ends in self.names.items():
            if stem not in self.used:
                left.add(
                    f"{self.folder.name}/{stem}{ends[0]}", "there is no picture of that name for this control"
                )


def _alike(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes are of one shape, but for a pixel or two of rounding."""
    return abs(size[0] * other[1] - size[1] * other[0]) <= 2 * max(*size, *other)


def _number(name: str) -> tuple[int, str]:
    return len(name), name


def _no_folder(folder: Path) -> str:
    if folder.exists():
        return "it must be a folder, but is a file; name the folder that it lies in"
    return "it must exist, but there is no such folder"


def _holds_pictures(folder: Path) -> bool:
    return any(_is_picture(name) or _is_movie(name) for _, _, files in os.walk(folder) for name in files)


def _is_picture(name: str) -> bool:
    lower = name.lower()
    return lower.endswith(PICTURES) and not lower.endswith(MASK) and not name.startswith(".")


def _is_movie(name: str) -> bool:
    return name.lower().endswith(MOVIES) and not name.startswith(".")


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _folded(name: str) -> str:
    """By what names are sorted: as `pathlib` does it, so that the order of a dataset is what it was."""
    return name.lower() if os.name == "nt" else name


def _by_name(item: tuple[str, int]) -> str:
    return _folded(item[0])
