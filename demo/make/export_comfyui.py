"""The demo's VAE with the keys ComfyUI's stock VAELoader knows (TAESD), made on demand: nothing is shipped twice.

python -m demo.make.export_comfyui OUT.safetensors
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

MODEL = Path(__file__).resolve().parent.parent / "model"
SD3_SCALE, SD3_SHIFT = 1.5305, 0.0609
"""ComfyUI's SD3 latent format: model latent = (VAE latent - SD3_SHIFT) * SD3_SCALE."""


def comfyui_vae(vae: Path = MODEL / "vae") -> dict[str, Tensor]:
    """The AutoencoderTiny in folder `vae` as a TAESD state dict for models with SD3's latent format.

    The host's TAESD decodes (VAE latent - vae_shift) * vae_scale: with these two scalars that is the model
    latent divided by the scaling factor of the folder's config, as in diffusers.
    """
    config = json.loads((vae / "config.json").read_text(encoding="utf-8"))
    renamed = {
        comfyui_key(key): tensor
        for key, tensor in load_file(vae / "diffusion_pytorch_model.safetensors").items()
    }
    renamed["vae_scale"] = torch.tensor(SD3_SCALE / config["scaling_factor"])
    renamed["vae_shift"] = torch.tensor(SD3_SHIFT)
    return renamed


def comfyui_key(key: str) -> str:
    """encoder.layers.N.x -> taesd_encoder.N.x; the decoder's layers count a clamp first: N + 1."""
    part, _, layer, rest = key.split(".", 3)
    return f"taesd_{part}.{int(layer) + (part == 'decoder')}.{rest}"


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="file to write, usually ComfyUI/models/vae/NAME.safetensors")
    parser.add_argument("--vae", type=Path, default=MODEL / "vae", help="diffusers VAE folder")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(comfyui_vae(args.vae), args.out)


if __name__ == "__main__":
    main()
