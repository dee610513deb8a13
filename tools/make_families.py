"""README's table of families that train, from that of docs/families.md, which a test prints.

    python tools/make_families.py

A short name stands for the families behind it, and is listed only if every one of them trains.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "families.md"
MARKS = ("<!-- families: python tools/make_families.py -->", "<!-- end of families -->")
KINDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "pictures": {
        "SD 1.5 to 3.5": (
            "Stable Diffusion 1.5", "Stable Diffusion 2.1 (v)", "SD3, SD3.5 Large", "SD3.5 Medium",
        ),
        "SDXL": ("SDXL", "SDXL, v-prediction with zero terminal SNR", "SDXL inpainting"),
        "Flux": ("Flux dev", "Flux schnell"),
        "Flux.2": ("Flux.2 dev", "Flux.2 Klein"),
        "Chroma": ("Chroma", "Chroma Radiance (pixels)"),
        "Qwen-Image": ("Qwen-Image",),
        "Z-Image": ("Z-Image", "Z-Image (pixels)"),
        "Lumina 2": ("Lumina Image 2",),
        "HiDream": ("HiDream I1",),
        "Krea 2": ("Krea 2",),
        "Anima": ("Anima", "Anima, without the tokens of its adapter"),
        "AuraFlow": ("AuraFlow",),
        "PixArt": ("PixArt Sigma",),
        "Hunyuan-DiT": ("Hunyuan-DiT",),
        "HunyuanImage": ("HunyuanImage 2.1",),
        "Ideogram 4": ("Ideogram 4",),
        "ERNIE": ("ERNIE-Image",),
        "Kandinsky 5": ("Kandinsky 5 Image",),
        "LongCat": ("LongCat-Image",),
        "Lens": ("Lens",),
        "PixelDiT": ("PixelDiT",),
        "Boogu": ("Boogu",),
        "MageFlow": ("MageFlow",),
        "JoyImage": ("JoyImage",),
    },
    "edits, with reference pictures": {
        "Flux Kontext": ("Flux Kontext, with a reference picture",),
        "Flux.2": ("Flux.2, with a reference picture",),
        "Flux Fill": ("Flux Fill",),
        "Qwen-Image-Edit": ("Qwen-Image-Edit, with a reference picture",),
        "OmniGen2": ("OmniGen2", "OmniGen2, with a reference picture"),
    },
    "video": {
        "Wan 2.1, 2.2 and VACE": (
            "Wan 2.1 and 2.2 (14B) text-to-video", "Wan 2.1 image-to-video", "Wan 2.2 (14B) image-to-video",
            "Wan 2.2 (5B)", "Wan 2.2 (5B) image-to-video, first frame given", "Wan VACE",
        ),
        "HunyuanVideo": (
            "HunyuanVideo", "HunyuanVideo image-to-video", "HunyuanVideo image-to-video, without a picture",
            "HunyuanVideo 1.5",
        ),
        "LTX-Video": ("LTX-Video", "LTX-Video, first frame given"),
        "LTX-2 (without sound)": ("LTX-2, video alone",),
        "Cosmos": ("Cosmos 1", "Cosmos-Predict2"),
        "Mochi": ("Mochi",),
        "CogVideoX": ("CogVideoX",),
        "Kandinsky 5": ("Kandinsky 5 Video",),
    },
}  # fmt: skip
"""Kinds, short names of them, and the titles of docs/families.md that each stands for."""
REFUSED = {
    "Stable Cascade": ("Stable Cascade",),
    "Stable Video Diffusion": ("Stable Video Diffusion",),
    "HiDream O1": ("HiDream O1",),
    "sound": ("ACE-Step (sound)", "Stable Audio"),
}


def states(page: str) -> dict[str, str]:
    """What the last column of the page's table says, by title."""
    rows = [line.strip("| ").split("|") for line in page.splitlines() if line.startswith("| ")]
    return {
        row[0].strip(): row[-1].strip() for row in rows if row[-1].strip().startswith(("trains", "refused"))
    }


def table(found: Mapping[str, str]) -> str:
    """Markdown: a line for each kind.

    Raises:
        ValueError: a family of the page has no short name here.
    """
    named = {title for names in (*KINDS.values(), REFUSED) for titles in names.values() for title in titles}
    if found.keys() - named:
        raise ValueError(
            f"every family must have a short name, got none for {', '.join(found.keys() - named)}; add it to KINDS"
        )
    lines = ["| | |", "|---|---|"]
    for kind, names in KINDS.items():
        listed = [name for name, titles in names.items() if all(found.get(t) == "trains" for t in titles)]
        lines.append(f"| {kind} | {', '.join(listed)} |")
    refused = [
        name for name, titles in REFUSED.items() if all(found.get(t, "refused")[0] == "r" for t in titles)
    ]
    return "\n".join([*lines, f"| refused, in one line | {', '.join(refused)} |"])


def written(readme: str, page: str) -> str:
    """A README with the table of the page between the marks, if it has them, and the number of families that train."""
    found = states(page)
    begin, end = MARKS
    if begin in readme:
        before, rest = readme.split(begin)
        readme = f"{before}{begin}\n{table(found)}\n{end}{rest.split(end)[1]}"
    trained = sum(state == "trains" for state in found.values())
    readme = re.sub(r"^\d+(?= kinds of model of ComfyUI)", str(trained), readme, flags=re.MULTILINE)
    return re.sub(r"\d+(?= 種類のモデル)", str(trained), readme)


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    for name in ("README.md", "README.ja.md"):
        file = ROOT / name
        file.write_text(written(file.read_text(encoding="utf-8"), text), encoding="utf-8")
