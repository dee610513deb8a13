"""LoRA files in the names of many trainers, on a MODEL by the stock loader and by the pack."""

import sys
from pathlib import Path

import comfy.lora
import comfy.sd
import folder_paths
import torch
from safetensors.torch import load_file, save_file

from .model_nodes import estimate

CATEGORY = "tests"
ENDS = {
    "kohya": ("lora_up.weight", "lora_down.weight"),
    "peft": ("lora_B.weight", "lora_A.weight"),
    "default": ("lora_B.default.weight", "lora_A.default.weight"),
}


class TestLoRAForms:
    """How far the pack's reading of a file is from the stock loader's, and what the file does.

    `start`: how the file names layers; of the host's own key map those names are taken that begin so. Does this host
    have none, its names of diffusers' kind are, without what stands before `start`; `layers` is 0 then.
    """

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = CATEGORY, "compare", (), True

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {
            "required": {
                "base": ("MODEL",),
                "model": ("ROLLOUT_MODEL",),
                "latents": ("LATENT",),
                "conditioning": ("CONDITIONING",),
                "start": ("STRING", {}),
                "ends": ("STRING", {}),
                "kind": ("STRING", {}),
            }
        }

    @classmethod
    def IS_CHANGED(cls, **inputs):  # noqa: N802
        return float("nan")

    @torch.inference_mode(False)
    def compare(self, base, model, latents, conditioning, start, ends, kind):
        path = Path(folder_paths.get_folder_paths("loras")[0]) / "foreign.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors, layers = foreign(base, start, ENDS[ends], kind)
        save_file(tensors, path)
        patched, _ = comfy.sd.load_lora_for_models(base, None, load_file(path), 1.0, 0)
        if not layers:
            return {"ui": unknown(model, path, base, patched)}
        adapter = model.source.read_lora(path)
        package = type(model).__module__.partition(".training.")[0]
        forms = sys.modules[f"{package}.training.forms"]
        sigma = model.source.schedule.sigma(torch.full((1,), 0.6)).float()
        x0 = model.source.network.latent_in(latents["samples"][:1].clone()).float()
        x = forms.add_noise(model.source.prediction, x0, torch.randn(x0.shape), sigma)
        rows = sys.modules[f"{package}.host.comfyui.conditioning"].conditioning_rows(conditioning[:1])
        cond = sys.modules[f"{package}.training.conditioning"].joined([dict(row) for row in rows])
        with torch.no_grad(), model.with_adapter(adapter).denoiser() as denoiser:
            ours = denoiser.predict(x, sigma, cond)
            ours = forms.to_denoised(denoiser.prediction, x, sigma, ours)
        with torch.no_grad():
            theirs, without = (estimate(m, x, sigma, conditioning[:1]) for m in (patched, base))
        return {
            "ui": {
                "difference": [float((ours - theirs).abs().max())],
                "effect": [float((theirs - without).abs().max())],
                "layers": [layers],
            }
        }


def unknown(model, path, base, patched):
    """How many weights the stock loader changes by a file of names that it does not know, and what the pack says."""
    told = ""
    try:
        model.source.read_lora(path)
    except ValueError as error:
        told = str(error)
    return {"layers": [0], "changed": [len(patched.patches) - len(base.patches)], "told": [told]}


def foreign(base, start, ends, kind):
    """A file with random factors for all attention layers that the host knows by names beginning with `start`."""
    known = comfy.lora.model_lora_keys_unet(base.model, {})
    if any(name.startswith(start) for name in known):
        return drawn(base, known, start, ends, kind)
    bare = {name.partition(".")[2]: value for name, value in known.items()}
    return drawn(base, bare, start, ends, kind)[0], 0


def drawn(base, known, start, ends, kind):
    """Random factors for those of the `known` names that begin with `start`, and how many layers they are of."""
    weights = base.model.state_dict()
    tensors, layers, seen = {}, 0, []
    g = torch.Generator().manual_seed(3)
    for name, value in sorted(known.items()):
        key, offset = (value, None) if isinstance(value, str) else value[:2]
        fused = offset is not None
        is_layer = key in weights and key.endswith(".weight") and weights[key].ndim == 2 and "norm" not in key
        if not is_layer or not name.startswith(start) or name.endswith("linear1_qkv"):  # lies in linear1 too
            continue
        if value in seen:  # a second name of the same layer
            continue
        seen.append(value)
        out, inner = weights[key].shape
        out = offset[2] if fused else out
        if fused and offset[1] + offset[2] > weights[key].shape[0]:
            continue
        up, down = torch.randn(out, 2, generator=g) * 0.1, torch.randn(2, inner, generator=g) * 0.1
        tensors |= {f"{name}.{ends[0]}": up, f"{name}.{ends[1]}": down, f"{name}.alpha": torch.tensor(1.0)}
        if kind == "dora" and not fused:
            tensors[f"{name}.dora_scale"] = weights[key].float().norm(dim=1, keepdim=True).cpu() * 1.3
        layers += 1
    return tensors, layers
