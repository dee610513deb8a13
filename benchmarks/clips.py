"""Print what encoding a clip takes in memory, against its length.

    python benchmarks/clips.py [--frames 100 300 1000] [--side 512] [--sample 33 1025]

Movies (h264, moving noise) are made here, read and encoded by the code that nodes call, each in a process of its own:
in samples of 33 frames, all parts, and in one sample that is as long as the movie. The autoencoder is a mean over 8 x 8
pixels and 4 frames, and asks for 64 frames at a time of more than 129, as `host/comfyui/pieces.py` asks for parts.
Needs PyAV; the table is Markdown.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from rollout_trainer.training.data.clips import Cutting
from rollout_trainer.training.data.encoding import encode
from rollout_trainer.training.data.folders import read_image_folder
from rollout_trainer.training.models.frames import Frames


class Source:
    """A `ModelSource` of a video model's sizes."""

    name = "a video model"
    encoder_fingerprint = "benchmark"
    dtype = torch.float32
    size_multiple = 8
    frame_rate = 16.0
    whole_frames = 129

    def __init__(self, side: int) -> None:
        self.default_resolution = side

    def clip_frames(self, most: int) -> int:
        """4 n + 1."""
        return max(1, (most - 1) // 4 * 4 + 1)

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Of a picture."""
        return 3, 1, height // 8, width // 8

    def encode_clip(self, frames: Tensor | Frames) -> Tensor:
        """Means."""
        parts = [avg_pool2d(frames[first : first + 64], 8) for first in range(0, len(frames), 64)]
        small = torch.cat(parts).movedim(0, 1)
        return torch.cat([small[:, :1], small[:, 1:].unflatten(1, (-1, 4)).mean(2)], 1)

    def encode_text(self, captions: Sequence[str]) -> Mapping[str, Tensor]:
        """Zeros."""
        return {"context": torch.zeros(len(captions), 8, 64)}


def movie(path: Path, frames: int, side: int) -> None:
    """Noise in large squares, 16 frames a second."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = side, side, "yuv420p"
        stream.options = {"preset": "ultrafast"}
        for _ in range(frames):
            small = rng.integers(0, 255, (side // 32, side // 32, 3), np.uint8)
            picture = av.VideoFrame.from_ndarray(small.repeat(32, 0).repeat(32, 1), format="rgb24")
            for packet in stream.encode(picture):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    path.with_suffix(".txt").write_text("noise")


def memory(field: str) -> float:
    """MiB of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) / 1024


def measure(folder: Path, side: int, sample: int) -> dict[str, float]:
    """Read the folder and encode what is in it."""
    torch.set_num_threads(1)
    source: Any = Source(side)
    before, begin = memory("VmRSS"), time.process_time()
    dataset = read_image_folder(folder, cutting=Cutting(sample, part="all parts"))
    data = encode(dataset, source, cache_dir=folder / "cache")
    return {
        "samples": len(data),
        "more": memory("VmHWM") - before,
        "before": before,
        "cpu": time.process_time() - begin,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--sample", type=int, nargs="+", default=[33, 1025])
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder:
        print(json.dumps(measure(args.folder, args.side, args.sample[0])))
        return
    print("| frames of the clip | samples | RAM before, MiB | peak above it, MiB | CPU, s |")
    print("|---:|---:|---:|---:|---:|", flush=True)
    for frames in args.frames:
        with tempfile.TemporaryDirectory() as place:
            movie(Path(place) / "clip.mp4", frames, args.side)
            for sample in args.sample:
                print(row(Path(place), args.side, frames, sample), flush=True)


def row(place: Path, side: int, frames: int, sample: int) -> str:
    """A movie's line of the table."""
    command = [sys.executable, __file__, "--folder", str(place), "--side", str(side), "--sample", str(sample)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    long = (min(frames, sample) - 1) // 4 * 4 + 1
    return (
        f"| {frames:,} | {found['samples']} of {long} | {found['before']:.0f} | {found['more']:.0f} | "
        f"{found['cpu']:.1f} |"
    )


if __name__ == "__main__":
    main()
