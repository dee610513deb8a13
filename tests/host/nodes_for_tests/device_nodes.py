"""What the host's device holds, and a MODEL of which the host keeps nothing there between two uses."""

import gc
import hashlib
import importlib.util
import sys
import warnings
from collections import Counter
from pathlib import Path

import comfy.model_management
import comfy.sample
import torch

CATEGORY = "tests"


def dynamic_vram() -> bool:
    """Whether the host fetches weights as they are used; 0.3.64 cannot."""
    if importlib.util.find_spec("comfy.memory_management") is None:
        return False
    return bool(getattr(importlib.import_module("comfy.memory_management"), "aimdo_enabled", False))


def allocated():
    """Bytes of tensors on the device, None on a CPU."""
    device = comfy.model_management.get_torch_device()
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    return torch.cuda.memory_allocated(device)


class TestDevice:
    """What the host computes on, and how many bytes lie there once it has let go of all models."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = CATEGORY, "look", (), True

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {}}

    @classmethod
    def IS_CHANGED(cls, **inputs):  # noqa: N802
        return float("nan")

    def look(self):
        comfy.model_management.unload_all_models()
        gc.collect()
        comfy.model_management.soft_empty_cache()
        dynamic = dynamic_vram()
        facts = {"device": str(comfy.model_management.get_torch_device()), "dynamic": dynamic}
        return {"ui": {"facts": [facts | {"allocated": allocated()}]}}


class TestKeepNothing:
    """The same MODEL; under dynamic VRAM no weight of it may stay on the device: each is fetched for each use."""

    CATEGORY, FUNCTION, RETURN_TYPES = CATEGORY, "limit", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"model": ("MODEL",)}}

    def limit(self, model):
        if model.is_dynamic() if hasattr(model, "is_dynamic") else False:
            vbar = model._vbar_get(create=True)
            if vbar is not None:
                vbar.set_watermark_limit(0)
                vbar.set_watermark(0)
                vbar.free_memory(1 << 60)
        return (model,)


class TestSampled:
    """What the host samples with a MODEL, in numbers, and the sampling's digest."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = CATEGORY, "sample", (), True

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"model": ("MODEL",), "latents": ("LATENT",), "conditioning": ("CONDITIONING",)}}

    @classmethod
    def IS_CHANGED(cls, **inputs):  # noqa: N802
        return float("nan")

    def sample(self, model, latents, conditioning):
        start = latents["samples"][:1]
        noise = comfy.sample.prepare_noise(start, 7)
        drawn = comfy.sample.sample(
            model, noise, 3, 1.5, "euler", "simple", conditioning[:1], conditioning[1:2], start, seed=7
        )
        network = model.model.diffusion_model
        left = sorted(name for name in vars(network) if "peft" in name)
        hooks = sum(len(m._forward_pre_hooks) + ("forward" in vars(m)) for m in network.modules())
        drawn = drawn.float().cpu()
        digest = hashlib.sha256(drawn.numpy().tobytes()).hexdigest()
        return {"ui": {"digest": [digest], "norm": [float(drawn.norm())], "left": left, "hooks": [hooks]}}


class TestSmallMemory:
    """Lets the pack believe in a device with room for `share` times a model's weights; 0: the device that there is."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = CATEGORY, "believe", (), True
    own = None

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"share": ("FLOAT", {"min": 0.0, "step": 0.01})}}

    @classmethod
    def IS_CHANGED(cls, **inputs):  # noqa: N802
        return float("nan")

    def believe(self, share):
        memory = next(m for name, m in sys.modules.items() if name.endswith("training.plan.memory"))
        TestSmallMemory.own = TestSmallMemory.own or memory.memory_of
        memory.memory_of = (lambda device, weights: int(share * weights)) if share else TestSmallMemory.own
        return {}


class TestWaits:
    """Hands a run on; from one such node to the next, where each training step waits for the GPU."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = CATEGORY, "watch", ("ROLLOUT_RUN",), True
    usual = None
    seen: list[dict[str, int]] = []  # noqa: RUF012

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"run": ("ROLLOUT_RUN",), "begin": ("BOOLEAN", {"default": True})}}

    @classmethod
    def IS_CHANGED(cls, **inputs):  # noqa: N802
        return float("nan")

    def watch(self, run, begin):
        cls = TestWaits
        if not torch.cuda.is_available():
            return {"ui": {"waits": []}, "result": (run,)}
        trainer = next(
            m.Trainer for name, m in sys.modules.items() if name.endswith("training.trainer.trainer")
        )
        if begin:
            cls.usual, cls.seen = trainer.step, []
            trainer.step = watched(trainer.step, cls.seen)
            return {"ui": {"waits": []}, "result": (run,)}
        trainer.step = cls.usual
        return {"ui": {"waits": list(cls.seen)}, "result": (run,)}


def watched(step, seen):
    """A step that notes in `seen` how often it waits for the GPU in which line."""

    def own(self):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                return step(self)
            finally:
                torch.cuda.set_sync_debug_mode("default")
                waited = [w for w in caught if "called a synchronizing CUDA operation" in str(w.message)]
                places = (f"{'/'.join(Path(w.filename).parts[-3:])}:{w.lineno}" for w in waited)
                seen.append(dict(Counter(places)))

    return own


NODES = (TestDevice, TestKeepNothing, TestSampled, TestSmallMemory, TestWaits)
