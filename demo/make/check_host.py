"""Load the demo's transformer and VAE in a real ComfyUI and print the largest differences to diffusers.

    python demo/make/check_host.py COMFYUI_DIR [PATH ...]

Run it with that installation's interpreter, which needs diffusers beside; CPU, float32. It is a script, not
part of the package: a ComfyUI has modules of its own called `nodes` and `main`. Further PATHs join sys.path after
diffusers is loaded: stand-ins for what the installation lacks, which transformers must not see.
"""

import importlib.util
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import torch
from diffusers import AutoencoderTiny, SD3Transformer2DModel
from safetensors.torch import save_file

MODEL = Path(__file__).resolve().parent.parent / "model"
TRANSFORMER = MODEL / "transformer" / "diffusion_pytorch_model.safetensors"


def start_comfyui(paths: list[str]) -> None:
    """Make `comfy` importable, on the CPU."""
    sys.path[:0] = paths
    from comfy import cli_args

    cli_args.args.cpu = True


def transformer_difference() -> float:
    """max |velocity| difference over two latents at two noise levels, loaded as UNETLoader does."""
    import comfy.sd

    patcher = comfy.sd.load_diffusion_model(str(TRANSFORMER), model_options={"dtype": torch.float32})
    hosted = patcher.model.diffusion_model.float()
    ours = SD3Transformer2DModel.from_pretrained(MODEL / "transformer", torch_dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    x, context, pooled = (
        torch.randn(s, generator=generator) for s in ((2, 16, 16, 16), (2, 16, 128), (2, 128))
    )
    timestep = torch.tensor([900.0, 200.0])
    theirs = hosted(x, timestep, context=context, y=pooled)
    expected = ours(x, context, pooled, timestep, return_dict=False)[0]
    return (theirs - expected).abs().max().item()


def vae_differences() -> tuple[float, float]:
    """max difference of model latents and of pixels in [0, 1], through the renamed VAE as VAELoader does."""
    import comfy.latent_formats
    import comfy.sd
    import comfy.utils

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vae.safetensors"
        save_file(export_comfyui().comfyui_vae(MODEL / "vae"), file)
        hosted = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(file)))
    ours = AutoencoderTiny.from_pretrained(MODEL / "vae", torch_dtype=torch.float32)
    sd3 = comfy.latent_formats.SD3()
    pixels = torch.rand(2, 128, 128, 3, generator=torch.Generator().manual_seed(0))
    theirs = sd3.process_in(hosted.encode(pixels))
    latents = ours.encode(pixels.movedim(-1, 1) * 2 - 1).latents * ours.config.scaling_factor
    decoded = hosted.decode(sd3.process_out(latents)).movedim(-1, 1)
    expected = (ours.decode(latents / ours.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    return (theirs - latents).abs().max().item(), (decoded - expected).abs().max().item()


def export_comfyui() -> ModuleType:
    """The sibling module, by its path."""
    path = Path(__file__).with_name("export_comfyui.py")
    spec = importlib.util.spec_from_file_location("export_comfyui", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Print the differences."""
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    start_comfyui(sys.argv[1:])
    with torch.inference_mode():
        print(f"transformer, velocity: {transformer_difference():.1e}")
        encode, decode = vae_differences()
        print(f"VAE, model latents: {encode:.1e}; pixels in [0, 1]: {decode:.1e}")


if __name__ == "__main__":
    main()
