"""Checks in the process of a host, with its own modules: one JSON line for each, an error in words or null.

    COMFYUI_PATH=... PACK_PARENT=... <the host's python> in_host.py RESULTS.jsonl

Run by `test_in_host.py`.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

results = Path(sys.argv[1])
sys.path[:0] = [os.environ["PACK_PARENT"], os.environ["COMFYUI_PATH"]]
sys.argv = [sys.argv[0], "--cpu"]
import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import comfy.ops  # noqa: E402
import tiny_families  # noqa: E402
import torch  # noqa: E402
from comfy.clip_vision import Output  # noqa: E402
from torch import Tensor  # noqa: E402

from rollout_trainer.host.comfyui.conditioning import as_given, conditioning_rows  # noqa: E402
from rollout_trainer.host.comfyui.model import ComfyModel  # noqa: E402
from rollout_trainer.training.conditioning import joined, separated  # noqa: E402
from rollout_trainer.training.models.hosted import HostModel  # noqa: E402

torch.set_num_threads(1)
CHECKS: list[Callable[[], None]] = []


def check(function: Callable[[], None]) -> Callable[[], None]:
    """Name a check."""
    CHECKS.append(function)
    return function


# -- conditioning ----------------------------------------------------------------------------------


def seen() -> Any:
    """A vision encoder's output, of which a part is missing."""
    out = Output()
    out["image_embeds"], out["penultimate_hidden_states"] = torch.rand(1, 4), torch.rand(1, 3, 4)
    out["mm_projected"] = None
    return out


def entries() -> list[Any]:
    """CONDITIONING with every kind of value, the two entries unlike."""
    first = {
        "pooled_output": torch.rand(1, 4),
        "reference_latents": [torch.rand(1, 4, 2, 3), torch.rand(1, 4, 5, 2)],
        "reference_latents_method": "index, \u00fc\u4f8b",
        "clip_vision_output": seen(),
        "t5xxl_ids": torch.arange(5, dtype=torch.int),
        "scale": torch.tensor(0.5),
        "switch": True,
        "guidance": 3.5,
        "frames": 25,
        "nothing": None,
        "entries": [{"at": 2, "strength": 0.5, "mask": torch.rand(3, 2, 2)}],
        "none_given": [],
        "start_percent": 0.0,
        "end_percent": 1.0,
    }
    return [
        [torch.rand(1, 3, 4), first],
        [torch.rand(1, 5, 4), {"reference_latents": [torch.rand(1, 4, 2, 2)]}],
    ]


def same(a: Any, b: Any) -> bool:
    """Whether two values are of one kind and equal throughout."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Output):
        return isinstance(b, Output) and same(vars(a), vars(b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


@check
def any_value_comes_back_as_it_was_from_a_ragged_batch() -> None:
    given = entries()
    rows = separated(joined(conditioning_rows(given)))
    for (context, options), row in zip(given, rows, strict=True):
        left_out = ("start_percent", "end_percent")
        expected = {"cross_attn": context} | {
            k: v for k, v in options.items() if v is not None and k not in left_out
        }
        found = as_given(row)
        assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
        wrong = [k for k in expected if not same(expected[k], found[k])]
        assert not wrong, wrong


@check
def what_cannot_be_kept_or_holds_for_a_part_is_one_line() -> None:
    for options, said in (
        ({"hooks": object()}, "every step"),
        ({"start_percent": 0.2}, "every step"),
        ({"strange": object()}, "conditioning strange must be a tensor"),
        ({"strange": [{"deep": object()}]}, "conditioning strange/0/key:deep must be a tensor"),
    ):
        told = ""
        try:
            conditioning_rows([[torch.rand(1, 3, 4), options]])
        except ValueError as error:
            told = str(error)
        assert said in told, f"{options}: {told}"
        assert "\n" not in told


# -- weights that the host fetches for each use --------------------------------------------------------


class Fetching:
    """The host's fetching of weights under dynamic VRAM, imitated on the CPU.

    `resident`: what was fetched is kept on the layer, as it was made; else each fetch writes over the last one's
    memory. Nothing tells autograd of that.
    """

    def __init__(self, network: Any, resident: bool) -> None:
        self.resident, self.buffer = resident, torch.zeros(0)
        self.layers = [m for m in network.modules() if hasattr(m, "comfy_cast_weights")]
        self.own = comfy.ops.cast_bias_weight
        self.size = max(w.numel() for m in self.layers for w in m.parameters(recurse=False))

    def __enter__(self) -> Fetching:
        self.buffer = torch.empty(2, self.size)
        for layer in self.layers:
            layer.comfy_cast_weights, layer._v, layer._v_signature = True, object(), None
        comfy.ops.cast_bias_weight = self.cast
        return self

    def __exit__(self, *error: object) -> None:
        comfy.ops.cast_bias_weight = self.own
        for layer in self.layers:
            layer.comfy_cast_weights = False
            for name in ("_v", "_v_signature", "_v_weight", "_v_bias"):
                vars(layer).pop(name, None)

    def cast(self, s: Any, *args: Any, offloadable: bool = False, **kwargs: Any) -> Any:
        """As `comfy.ops.cast_bias_weight`."""
        if self.resident and s._v_signature is None:
            s._v_weight = None if s.weight is None else s.weight.detach().clone()
            bias = getattr(s, "bias", None)
            s._v_bias = None if bias is None else bias.detach().clone()
            s._v_signature = 1
        pair = (s._v_weight, s._v_bias) if self.resident else self.fetched(s)
        return (*pair, None) if offloadable else pair

    def fetched(self, s: Any) -> tuple[Tensor | None, Tensor | None]:
        """Weight and bias in memory that every layer shares."""
        out: list[Tensor | None] = []
        for place, t in enumerate((s.weight, getattr(s, "bias", None))):
            if t is not None:  # a tensor of its own over raw memory, as the host makes it
                memory = self.buffer[place].untyped_storage()
                start = self.buffer[place].storage_offset()
                own = torch.empty(0).set_(memory, start, t.shape, t.contiguous().stride())
                own.data.copy_(t)
                t = own.data
            out.append(t)
        return out[0], out[1]


def gradient(source: HostModel, checkpointing: bool) -> Tensor:
    """Of an input of the network, by its own denoiser open for training."""
    _, captions, _ = tiny_families.data("sd15")
    with torch.inference_mode(False):
        cond = joined(conditioning_rows(captions[:1]))
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5)).requires_grad_(True)
        denoiser = source.denoiser()
        with torch.enable_grad(), denoiser.opened(True, checkpointing):
            denoiser.predict(x, torch.tensor([3.0]), cond).square().sum().backward()
        assert x.grad is not None
        return x.grad.clone()


def fetching_changes_no_gradient(resident: bool, checkpointing: bool) -> None:
    """A UNet has linear layers, convolutions and norms with weights."""
    model = tiny_families.build("sd15")
    source = HostModel(ComfyModel(model))
    expected = gradient(source, checkpointing)
    with Fetching(source.network.module, resident):
        _, captions, _ = tiny_families.data("sd15")
        with (
            torch.inference_mode(),
            source.denoiser().opened(),
        ):  # as sampling before training leaves the layers
            source.denoiser().predict(
                torch.randn(1, 4, 8, 8), torch.tensor([3.0]), joined(conditioning_rows(captions[:1]))
            )
        found = gradient(source, checkpointing)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6), float((found - expected).abs().max())


@check
def training_after_sampling_forgets_what_sampling_kept_on_the_device() -> None:
    fetching_changes_no_gradient(resident=True, checkpointing=False)


@check
def training_after_sampling_forgets_it_with_checkpointing() -> None:
    fetching_changes_no_gradient(resident=True, checkpointing=True)


@check
def memory_that_all_layers_share_changes_no_gradient() -> None:
    fetching_changes_no_gradient(resident=False, checkpointing=False)


@check
def memory_that_all_layers_share_changes_no_gradient_with_checkpointing() -> None:
    fetching_changes_no_gradient(resident=False, checkpointing=True)


if __name__ == "__main__":
    with results.open("w") as out:
        for function in CHECKS:
            error = None
            try:
                function()
            except Exception:
                error = traceback.format_exc()[-1500:]
            out.write(json.dumps({"name": function.__name__, "error": error}) + "\n")
