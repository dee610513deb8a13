"""Clips: movies and animated pictures, read frame by frame, brought to a rate, and cut into samples.

Animated pictures (gif, webp, png, avif) are read by Pillow, movies by PyAV, which ComfyUI brings along. Frames are held
one at a time, however long the clip is.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from PIL import Image, ImageSequence

from .facts import Fact, line_of

MOVIES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi")
"""Ends of the names of movies."""
ANIMATED = (".gif", ".webp", ".png", ".avif")
"""Of pictures that may be animated; the further pictures in a tif or a phone's jpg are something else."""
NO_DELAY = 0.1
"""Seconds that a frame of an animated picture is shown where its file says nothing or 0, as browsers have it."""
SAME_TIME = 1e-4
"""Seconds: times that differ by less are taken for one, as files round them."""

Part = Literal["start", "middle", "all parts"]
"""What is used of a clip that is longer than a sample."""
Given = Literal["nothing", "start frame", "start and end frame"]
"""What of a clip an image-to-video model is given."""


@dataclass(frozen=True)
class Clip:
    """What is known of a clip beside its size."""

    frames: int
    seconds: float


@dataclass(frozen=True)
class Cutting:
    """How samples are cut out of clips."""

    frames: int = 33
    """Most frames of a sample."""
    fps: float = 0.0
    """Frames per second; 0: what the model was made for."""
    part: Part = "start"
    given: Given = "nothing"

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ValueError(f"clip_frames must be at least 1, got {self.frames}")
        if not self.fps >= 0:
            raise ValueError(f"clip_fps must be at least 0, got {self.fps}")
        for name, value, kind in (("clip_part", self.part, Part), ("clip_gives", self.given, Given)):
            if value not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, got {value}")


class Shot(NamedTuple):
    """A frame and when it is shown."""

    image: Image.Image
    """Upright."""
    start: float
    """Seconds from the first frame's start."""
    seconds: float


class Cut(NamedTuple):
    """The frames of a sample, counted at the rate that the clip is brought to."""

    first: int
    frames: int


def look_at_clip(path: Path) -> Fact:
    """Decode a clip to be sure that it can be: ``width``, ``height`` upright, ``frames``, ``seconds``, ``digest``.

    Raises:
        ValueError: it has no frames, or some that cannot be read, or PyAV is missing.
        OSError: the file cannot be read.
    """
    size, count, seconds = (0, 0), 0, 0.0
    with closing(shots(path)) as reading:
        for shot in reading:
            size, count, seconds = shot.image.size, count + 1, shot.start + shot.seconds
    if not count:
        raise ValueError("it has no frames")
    return {
        "width": size[0],
        "height": size[1],
        "frames": count,
        "seconds": seconds,
        "digest": _digest(path),
    }


def glance_at_clip(path: Path) -> Fact:
    """The same of its first frame alone, in a moment.

    Raises:
        ValueError: as `look_at_clip`.
    """
    with closing(shots(path)) as reading:
        shot = next(reading, None)
    if shot is None:
        raise ValueError("it has no frames")
    width, height = shot.image.size
    return {"width": width, "height": height, "frames": 1, "seconds": shot.seconds, "digest": "0" * 64}


def shots(path: Path) -> Generator[Shot, None, None]:
    """The frames of a clip, in order.

    Raises:
        ValueError: one of them cannot be read, or PyAV is missing.
    """
    return _movie(path) if path.name.lower().endswith(MOVIES) else _animation(path)


def length(frames: int, seconds: float, fps: float) -> int:
    """How many frames a clip has at `fps`; 0 takes its own."""
    return frames if not fps else max(1, math.ceil((seconds - SAME_TIME) * fps))


def cuts(available: int, count: int, part: Part) -> list[Cut]:
    """Where samples of `count` frames lie in a clip of `available` frames, at least `count`."""
    if part == "all parts":
        return [Cut(first, count) for first in range(0, available - count + 1, count)]
    return [Cut((available - count) // 2 if part == "middle" else 0, count)]


def resampled(path: Path, fps: float) -> Generator[Image.Image, None, None]:
    """The frames of a clip at `fps`, each the one that is shown at its time; 0 takes all as they are.

    Raises:
        ValueError: as `shots`.
    """
    k = 0
    for shot in shots(path):
        end = shot.start + shot.seconds
        while not fps or k / fps < end - SAME_TIME:
            k += 1
            yield shot.image
            if not fps:
                break


class ClipReader:
    """Reads one cut of a clip after another, from front to back, without holding what lies between."""

    def __init__(self, path: Path, fps: float) -> None:
        self._path, self._fps = path, fps
        self._frames: Iterator[Image.Image] = iter(())
        self._next = -1

    def frames(self, cut: Cut) -> Iterator[Image.Image]:
        """The frames of a cut, to be taken before the next cut is asked for.

        Raises:
            ValueError: it has fewer than when it was looked at, or cannot be read.
        """
        if self._next < 0 or cut.first < self._next:
            self.close()
            self._frames, self._next = resampled(self._path, self._fps), 0
        before, self._next = cut.first - self._next, cut.first + cut.frames
        found = 0
        for found, image in enumerate(islice(self._frames, before, before + cut.frames), 1):  # noqa: B007
            yield image
        if found < cut.frames:
            raise ValueError(f"clip {self._path}: it has changed since its folder was read; queue again")

    def close(self) -> None:
        """Let go of the file."""
        if hasattr(self._frames, "close"):
            self._frames.close()
        self._frames, self._next = iter(()), -1


def _movie(path: Path) -> Generator[Shot, None, None]:
    try:
        import av  # ComfyUI brings it; elsewhere a user may do without
    except ImportError as err:
        raise ValueError(
            "movies need PyAV, which is not installed: pip install av, or save it as an animated webp or gif"
        ) from err
    count = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError("it has no picture, only sound")
            stream = container.streams.video[0]
            gap = 1 / float(stream.average_rate or stream.guessed_rate or 25)
            waiting: Shot | None = None
            begin = 0.0
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise ValueError(f"its frame {count + 1} cannot be read")
                time = count * gap if frame.time is None else frame.time
                begin = time if waiting is None else begin
                if waiting is not None:
                    yield waiting._replace(seconds=max(0.0, time - begin - waiting.start))
                count += 1
                own = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else gap
                waiting = Shot(_upright(frame), time - begin, own)
            if waiting is not None:
                yield waiting
    except av.FFmpegError as err:
        raise ValueError(f"it cannot be read after {count} frames ({err.strerror})") from err


def _upright(frame: Any) -> Image.Image:
    """A movie's frame as it is to be seen: phones write how they were held beside the pixels."""
    image: Image.Image = frame.to_image()
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    turned = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}
    return image.transpose(turned[turns]) if turns else image


def _animation(path: Path) -> Generator[Shot, None, None]:
    count, start = 0, 0.0
    try:
        with Image.open(path) as opened:
            for image in ImageSequence.Iterator(opened):
                image.load()
                seconds = float(image.info.get("duration") or 0) / 1000 or NO_DELAY
                yield Shot(_flat(image), start, seconds)
                count, start = count + 1, start + seconds
    except Exception as err:  # Pillow raises anything from OSError to SyntaxError on a broken file
        raise ValueError(f"it cannot be read after {count} frames ({line_of(err)})") from err


def _flat(image: Image.Image) -> Image.Image:
    """A frame on white."""
    own = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", own.size, "white"), own).convert("RGB")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
