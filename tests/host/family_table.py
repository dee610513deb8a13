"""The table of docs/families.md, from the rows of `family_probe.py`."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]
MARKS = ("<!-- table: pytest tests/host/test_families.py --write-families -->", "<!-- end of table -->")
TITLES = {
    "sd15": "Stable Diffusion 1.5",
    "sd2_v": "Stable Diffusion 2.1 (v)",
    "sdxl": "SDXL",
    "sdxl_vpred_zsnr": "SDXL, v-prediction with zero terminal SNR",
    "sdxl_inpaint": "SDXL inpainting",
    "svd": "Stable Video Diffusion",
    "sd3": "SD3, SD3.5 Large",
    "sd35_medium": "SD3.5 Medium",
    "flux_dev": "Flux dev",
    "flux_schnell": "Flux schnell",
    "flux_kontext": "Flux Kontext, with a reference picture",
    "flux_fill": "Flux Fill",
    "flux2": "Flux.2 dev",
    "flux2_klein": "Flux.2 Klein",
    "flux2_edit": "Flux.2, with a reference picture",
    "longcat": "LongCat-Image",
    "chroma": "Chroma",
    "chroma_radiance": "Chroma Radiance (pixels)",
    "qwen_image": "Qwen-Image",
    "qwen_edit": "Qwen-Image-Edit, with a reference picture",
    "z_image": "Z-Image",
    "zimage_pixel": "Z-Image (pixels)",
    "lumina2": "Lumina Image 2",
    "auraflow": "AuraFlow",
    "pixart_sigma": "PixArt Sigma",
    "hydit": "Hunyuan-DiT",
    "hidream": "HiDream I1",
    "hunyuan_video": "HunyuanVideo",
    "hunyuan_i2v": "HunyuanVideo image-to-video",
    "hunyuan_i2v_noimg": "HunyuanVideo image-to-video, without a picture",
    "hunyuan_video15": "HunyuanVideo 1.5",
    "hunyuan_image21": "HunyuanImage 2.1",
    "wan21_t2v": "Wan 2.1 and 2.2 (14B) text-to-video",
    "wan21_i2v": "Wan 2.1 image-to-video",
    "wan22_i2v_14b": "Wan 2.2 (14B) image-to-video",
    "wan22_5b": "Wan 2.2 (5B)",
    "wan22_5b_i2v": "Wan 2.2 (5B) image-to-video, first frame given",
    "wan21_vace": "Wan VACE",
    "ltxv": "LTX-Video",
    "ltxv_i2v": "LTX-Video, first frame given",
    "ltx2_av_video_only": "LTX-2, video alone",
    "cosmos1": "Cosmos 1",
    "cosmos_predict2": "Cosmos-Predict2",
    "anima": "Anima",
    "anima_noids": "Anima, without the tokens of its adapter",
    "mochi": "Mochi",
    "cogvideox": "CogVideoX",
    "omnigen2": "OmniGen2",
    "omnigen2_edit": "OmniGen2, with a reference picture",
    "boogu": "Boogu",
    "ideogram4": "Ideogram 4",
    "krea2": "Krea 2",
    "mage_flow": "MageFlow",
    "joyimage": "JoyImage",
    "kandinsky5_image": "Kandinsky 5 Image",
    "kandinsky5_video": "Kandinsky 5 Video",
    "ernie": "ERNIE-Image",
    "lens": "Lens",
    "pixeldit": "PixelDiT",
    "cascade_c": "Stable Cascade",
    "hidream_o1": "HiDream O1",
    "ace_step": "ACE-Step (sound)",
    "stable_audio": "Stable Audio",
}
NAMES = tuple(TITLES)
REFUSED = {
    "cascade_c": "noise levels",
    "svd": "frames of one clip",
    "hidream_o1": "noise of scale 1",
    "ace_step": "sound",
    "stable_audio": "sound",
}
"""Families that are refused, and what the line says."""


def table(rows: dict[str, Row]) -> str:
    """Markdown: a line for each family, in the order of `TITLES`."""
    lines = [
        "| family | ComfyUI's class | predicts | shift | side | layers by default | |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [line(title, rows[name]) for name, title in TITLES.items() if "unknown" not in rows[name]]
    return "\n".join(lines)


def line(title: str, row: Row) -> str:
    """One family."""
    if "refused" in row:
        told = row["refused"].split(" @ ")[0].removeprefix("ValueError: ")
        return f"| {title} | | | | | | refused: {told} |"
    shift = "table" if row["shift"] is None else f"{row['shift']:g}"
    layers = f"{row['targets']} of {row['linear']}"
    state = "trains" if isinstance(row["plain"], list) else f"fails: {row['plain']}"
    return f"| {title} | {row['name']} | {row['prediction']} | {shift} | {row['resolution']} | {layers} | {state} |"
