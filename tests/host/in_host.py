"""Checks in the process of a host, with its own modules: one JSON line for each, an error in words or null.

    COMFYUI_PATH=... PACK_PARENT=... <the host's python> in_host.py RESULTS.jsonl [PART OF NAMES]

Run by `test_in_host.py`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import tempfile
import traceback
import types
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

results = Path(sys.argv[1])
sys.path[:0] = [os.environ["PACK_PARENT"], os.environ["COMFYUI_PATH"]]
COMPILED = "compiled"
ONLY = sys.argv[2] if len(sys.argv) > 2 else ""
"""What the names of the checks that run contain; without it, all but those of compiled blocks, which take long."""
sys.argv = [sys.argv[0], "--cpu"]
import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import comfy.ops  # noqa: E402
import comfy.sd  # noqa: E402
import musubi  # noqa: E402
import tiny_families  # noqa: E402
import torch  # noqa: E402
from comfy.clip_vision import ClipVisionModel, Output  # noqa: E402
from comfy.taesd.taesd import TAESD  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn.attention import SDPBackend  # noqa: E402

from rollout_trainer.host.comfyui import trainable  # noqa: E402
from rollout_trainer.host.comfyui.conditioning import as_given, conditioning_rows  # noqa: E402
from rollout_trainer.host.comfyui.model import ComfyModel  # noqa: E402
from rollout_trainer.nodes.comfy import latent as node_latent  # noqa: E402
from rollout_trainer.training.conditioning import joined, separated  # noqa: E402
from rollout_trainer.training.data.latents import dataset_from_latents  # noqa: E402
from rollout_trainer.training.lora.adapter import LoRAConfig, target_modules  # noqa: E402
from rollout_trainer.training.lora.presets import linear_layers, preset_targets  # noqa: E402
from rollout_trainer.training.models.frames import Frames  # noqa: E402
from rollout_trainer.training.models.hosted import HostModel  # noqa: E402
from rollout_trainer.training.objective.config import ReflexFlowConfig, RolloutConfig  # noqa: E402
from rollout_trainer.training.objective.losses import LossConfig, batch_loss  # noqa: E402
from rollout_trainer.training.objective.states import Goal  # noqa: E402
from rollout_trainer.training.plan import needs  # noqa: E402
from rollout_trainer.training.plan.memory import SWITCHES, largest_batch  # noqa: E402
from rollout_trainer.training.runs.run import start, train  # noqa: E402
from rollout_trainer.training.trainer import trainer  # noqa: E402
from rollout_trainer.training.trainer.config import TrainConfig, resolved  # noqa: E402

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


# -- what an error counts --------------------------------------------------------------------------


def own_loss(family: str, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The trained loss of each row, the network's own output and what that should have been."""
    source = HostModel(ComfyModel(tiny_families.build(family)))
    latent, captions, _ = tiny_families.data(family)
    outputs: list[Tensor] = []
    hook = source.network.module.register_forward_hook(lambda _m, _a, out: outputs.append(out.float()))
    with torch.inference_mode(False), torch.no_grad():
        x0 = source.network.latent_in(latent["samples"]).clone()
        cond = joined(conditioning_rows(captions))
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(9))
        level = sigma.reshape(-1, *[1] * (x0.ndim - 1))
        denoiser = source.denoiser()
        with denoiser.opened():
            output = denoiser.predict(x0 + level * noise, sigma, cond)
            weight = denoiser.loss_weight(sigma)
        assert weight is not None
        loss = batch_loss(
            LossConfig(), ReflexFlowConfig(), "epsilon", output, Goal(noise), sigma, weight=weight
        )
    hook.remove()
    own = torch.cat(outputs)
    if family == "cosmos1":
        wanted = ((x0 + level * noise) * 0.25 / (level**2 + 0.25) - x0) / (
            -level * 0.5 / (level**2 + 0.25).sqrt()
        )
    else:
        wanted = noise - x0
    return loss.total, own, wanted


@check
def cosmos_is_judged_by_its_networks_own_output() -> None:
    """Rectified flow, and what EDM's network predicts: as each was trained, at every noise level alike."""
    sigma = torch.tensor([0.3, 40.0])
    for family, weight in (
        ("cosmos_predict2", (1 + sigma) ** 2),
        ("cosmos1", (sigma**2 + 0.25) / 0.25),
    ):
        found = HostModel(ComfyModel(tiny_families.build(family))).denoiser().loss_weight(sigma)
        assert found is not None
        assert torch.allclose(found, weight, rtol=1e-5), (family, found)
        loss, own, wanted = own_loss(family, sigma)
        expected = (own - wanted).square().mean()
        assert torch.allclose(loss, expected, rtol=1e-3), (family, float(loss), float(expected))


@check
def other_models_are_judged_as_before() -> None:
    for family in ("flux_dev", "sd15", "sd2_v", "cogvideox"):
        try:
            model = tiny_families.build(family)
        except AttributeError:  # an older host does not know it
            assert family == "cogvideox"
            continue
        denoiser = HostModel(ComfyModel(model)).denoiser()
        assert denoiser.loss_weight(torch.tensor([0.5])) is None, family


# -- what is refused ---------------------------------------------------------------------------------


def told(what: Callable[[], object]) -> str:
    """The line of a refusal, of the kind that a node shows."""
    try:
        what()
    except ValueError as error:
        return str(error)
    return ""


@check
def sound_and_models_without_a_schedule_are_one_line_each() -> None:
    for family, said in (
        ("hidream_o1", "model must use noise of scale 1, got 8.0"),
        ("cascade_c", "model must have noise levels of a common kind, got StableCascade_C"),
        ("ace_step", "model must make pictures or video, got ACEStep, which makes sound"),
        ("stable_audio", "model must make pictures or video, got StableAudio1, which makes sound"),
        ("svd", "model must take each picture or clip by itself, got SVD_img2vid"),
    ):
        try:
            model = tiny_families.build(family)
        except (AttributeError, ImportError):  # an older host does not know it
            assert family in ("hidream_o1",)
            continue
        line = told(lambda: ComfyModel(model))  # noqa: B023
        assert line.startswith(said), f"{family}: {line}"
        assert "\n" not in line
        assert "choose another" in line


@check
def a_latent_of_picture_and_sound_is_one_line() -> None:
    """LTX-2 with sound: its latents are nested."""
    if importlib.util.find_spec("comfy.nested_tensor") is None:  # an older host knows no such latents
        return
    nested = importlib.import_module("comfy.nested_tensor").NestedTensor
    source = HostModel(ComfyModel(tiny_families.build("ltx2_av_video_only")))
    video, _, _ = tiny_families.data("ltx2_av_video_only")
    both = nested([video["samples"], torch.randn(2, 8, 4, 16)])
    line = told(lambda: node_latent(source, {"samples": both}))
    assert "sound" in line
    assert "\n" not in line, line


# -- which layers are trained ------------------------------------------------------------------------


@check
def the_default_preset_is_musubi_tuners_but_for_what_is_listed() -> None:
    found = {}
    for family, rule in musubi.RULES.items():
        try:
            source = HostModel(ComfyModel(tiny_families.build(family)))
        except (AttributeError, ImportError, TypeError):  # an older host does not know it
            continue
        network = source.network.module
        linear = linear_layers(network)
        ours = set(
            target_modules(network, preset_targets("attention+mlp", network, source.default_lora_targets))
        )
        theirs = musubi.layers(rule, network, linear)
        assert theirs, family
        assert not ours - theirs, f"{family}: trained here alone: {musubi.kinds(ours - theirs)}"
        if theirs - ours:
            there = musubi.kinds(theirs - ours)
            found[family] = there if family != "krea2" else "every other linear layer"
    assert found == {name: musubi.TRAINED_THERE_ALONE.get(name) for name in found}, found
    assert "krea2" in found or not hasattr(tiny_families.base, "Krea2")


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


class Fetched(torch.autograd.Function):
    """A product with a fetched weight, which says when its gradient is computed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, events: list[str]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.events = events
        return x @ weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        ctx.events.append("computes")
        return grad @ ctx.saved_tensors[0].mT, None, None


@check
def a_fetched_weight_outlives_its_gradient() -> None:
    # A GPU computes later than it is told to: the streams that fetch must wait while the weight is still held.
    events: list[str] = []
    held: list[Any] = []

    class Stream:
        def wait_stream(self, _computing: Any) -> None:
            events.append("waits, held" if held[-1]() is not None else "waits in vain")

    def layer(x: Tensor) -> Tensor:
        weight = torch.full((3, 2), 2.0)
        held.append(weakref.ref(weight))
        out: Tensor = Fetched.apply(x, weight, events)
        return out

    streams = {torch.device("cpu"): [Stream(), Stream()]}
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        mock.patch.object(comfy.model_management, "STREAMS", streams, create=True),
    ):
        x = torch.ones(1, 3, requires_grad=True)
        trainable.Recast.apply(x, layer).sum().backward()
        assert x.grad is not None
        assert x.grad.tolist() == [[4.0, 4.0, 4.0]]
    assert events == ["computes", "waits, held", "waits, held"], events
    assert all(weight() is None for weight in held)


@check
def a_training_fetches_no_block_ahead() -> None:
    if importlib.util.find_spec("comfy.model_prefetch") is None:  # 0.3.64
        return
    ahead = importlib.import_module("comfy.model_prefetch")
    device, wanted = torch.device("cuda"), {"prefetch_dynamic_vbars": True}
    denoiser = HostModel(ComfyModel(tiny_families.build("sd3"))).denoiser()
    means = {"device_supports_non_blocking": lambda _device: True, "NUM_STREAMS": 2}
    with mock.patch.multiple(comfy.model_management, **means):
        with denoiser.opened(True):
            assert ahead.make_prefetch_queue(["block"], device, wanted) is None
        with denoiser.opened():
            assert ahead.make_prefetch_queue(["block"], device, wanted) == [None, "block", None]
    ahead.PREFETCH_QUEUES.clear()


@check
def a_training_keeps_from_cudnns_attention() -> None:
    asked = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    denoiser = HostModel(ComfyModel(tiny_families.build("sd3"))).denoiser()

    def chosen() -> tuple[bool, bool]:
        own = comfy.ops.SDPA_BACKEND_PRIORITY
        return torch.backends.cuda.cudnn_sdp_enabled(), SDPBackend.CUDNN_ATTENTION in own

    with mock.patch.object(comfy.ops, "SDPA_BACKEND_PRIORITY", asked, create=True):
        with denoiser.opened(True):
            assert chosen() == (False, False)
            assert asked[1:] == comfy.ops.SDPA_BACKEND_PRIORITY
        with denoiser.opened():
            assert chosen() == (True, True)
        assert chosen() == (True, True)


# -- controls ------------------------------------------------------------------------------------------


def video_vae(channels: int = 16) -> Any:
    """A VAE of Wan's kind, small, with random weights."""
    kind = importlib.import_module("comfy.ldm.wan.vae" if channels == 16 else "comfy.ldm.wan.vae2_2")
    real = kind.WanVAE
    kind.WanVAE = lambda **options: real(**{**options, "dim": 8})
    try:
        sizes = {"z_dim": channels, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": []}
        weights = kind.WanVAE(temperal_downsample=[False, True, True], dropout=0.0, **sizes).state_dict()
        g = torch.Generator().manual_seed(0)
        return comfy.sd.VAE(
            sd={k: tiny_families.random_like(k, w, g) for k, w in weights.items()}, dtype=torch.float32
        )
    finally:
        kind.WanVAE = real


def picture_vae() -> Any:
    """The tiny autoencoder with random weights."""
    g = torch.Generator().manual_seed(0)
    weights = TAESD(latent_channels=16).state_dict()
    return comfy.sd.VAE(sd={k: tiny_families.random_like(k, w, g) for k, w in weights.items()})


class Words:
    """A CLIP of no weights."""

    def __init__(self) -> None:
        self.patcher = types.SimpleNamespace(model=torch.nn.Linear(1, 1))

    def tokenize(self, text: str) -> str:
        """As it is."""
        return text

    def encode_from_tokens_scheduled(self, tokens: str) -> Any:
        """The same for every text."""
        return [[torch.ones(1, 3, 48), {"pooled_output": torch.ones(1, 768)}]]


def clip_of(frames: int, seed: int = 0) -> Tensor:
    """Frames [F, H, W, 3], of shapes that change slowly."""
    g = torch.Generator().manual_seed(seed)
    return torch.nn.functional.interpolate(torch.rand(frames, 3, 4, 4, generator=g), (64, 64)).movedim(1, -1)


@check
@torch.no_grad()
def a_long_clip_is_read_in_parts_and_encoded_as_if_it_were_whole() -> None:
    """Bit for bit with Wan's autoencoder; with others nearer to it than the host's own tiles of that length."""
    frames = clip_of(165)[:, :32, :32].contiguous()
    asked: list[int] = []

    def read(first: int, last: int) -> Tensor:
        asked.append(last - first)
        return frames[first:last].movedim(-1, 1)

    for channels in (16, 48):
        family = "wan21_t2v" if channels == 16 else "wan22_5b"
        source = HostModel(ComfyModel(tiny_families.build(family), vae=video_vae(channels)))
        vae, asked[:] = source.network.vae, []
        found = source.encode_clip(Frames((165, 3, 32, 32), read))
        whole = source.network.latent_in(vae.encode(frames))[0]
        if channels == 16:
            assert torch.equal(found, whole), float((found - whole).abs().max())
            assert max(asked) <= 4, asked
        else:
            tiled = vae.encode_tiled(frames, tile_x=512, tile_y=512, overlap=64, tile_t=121, overlap_t=48)
            theirs = (source.network.latent_in(tiled)[0] - whole).square().mean()
            assert (found - whole).square().mean() < theirs, (float((found - whole).square().mean()), theirs)
            assert max(asked) <= 121, asked


def alike(row: dict[str, Tensor], entry: Any) -> None:
    """That a control row holds what a node has put into CONDITIONING, beside the text."""
    (theirs,) = conditioning_rows([entry])
    theirs = {k: v for k, v in theirs.items() if k != "cross_attn"}
    assert row.keys() == theirs.keys(), (sorted(row), sorted(theirs))
    for name, value in row.items():
        own = theirs[name]
        assert torch.allclose(value, own, atol=1e-6), (name, value.shape, own.shape)


def node(module: str, name: str) -> Any:
    """One of the host's nodes."""
    return getattr(importlib.import_module(module), name)


def run(cls: Any, *args: Any, **kwargs: Any) -> Any:
    """What a node returns first: its CONDITIONING's only row."""
    if not hasattr(cls, "execute"):  # an older host's form of it
        return getattr(cls(), cls.FUNCTION)(*args, **kwargs)[0][0]
    return cls.execute(*args, **kwargs).args[0][0]


TEXT = [[torch.rand(1, 3, 48), {}]]


@check
@torch.no_grad()
def start_and_end_frames_are_what_wans_nodes_give() -> None:
    vae, clip = video_vae(), clip_of(9)
    for family in ("wan21_i2v", "wan22_i2v_14b"):
        model = ComfyModel(tiny_families.build(family), vae=vae)
        row = model.encode_controls([("start frame", clip[:1])], clip)
        wan = node("comfy_extras.nodes_wan", "WanImageToVideo")
        alike(row, run(wan, TEXT, TEXT, vae, 64, 64, 9, 1, start_image=clip[:1]))
        row = model.encode_controls([("start frame", clip[:1]), ("end frame", clip[-1:])], clip)
        wan = node("comfy_extras.nodes_wan", "WanFirstLastFrameToVideo")
        alike(row, run(wan, TEXT, TEXT, vae, 64, 64, 9, 1, start_image=clip[:1], end_image=clip[-1:]))


def eyes() -> Any:
    """A CLIP vision model of the width that Wan 2.1 is told of, else small, with random weights."""
    torch.manual_seed(0)
    sides = {"image_size": 28, "patch_size": 14, "num_channels": 3, "hidden_size": 1280, "projection_dim": 8}
    layers = {
        "num_hidden_layers": 2,
        "num_attention_heads": 16,
        "intermediate_size": 32,
        "hidden_act": "gelu",
    }
    config = {**sides, **layers, "layer_norm_eps": 1e-5, "model_type": "clip_vision_model"}
    with tempfile.TemporaryDirectory() as folder:  # ComfyUI 0.3.64 takes a file only
        file = Path(folder) / "config.json"
        file.write_text(json.dumps(config), encoding="utf-8")
        vision = ClipVisionModel(str(file))
    g = torch.Generator().manual_seed(0)
    weights = {k: tiny_families.random_like(k, w, g) for k, w in vision.get_sd().items()}
    vision.load_sd(weights)
    return vision


@check
@torch.no_grad()
def what_is_seen_in_given_frames_is_what_wans_nodes_add() -> None:
    vae, clip, vision = video_vae(), clip_of(9), eyes()
    look = importlib.import_module("nodes").CLIPVisionEncode().encode
    first, last = (look(vision, frame, "center")[0] for frame in (clip[:1], clip[-1:]))
    model = ComfyModel(tiny_families.build("wan21_i2v"), Words(), vae, 0.0, vision)
    plain = ComfyModel(model.patcher, model.clip, vae)
    assert HostModel(model).encoder_fingerprint != HostModel(plain).encoder_fingerprint
    found, seen = {}, "clip_vision_output/vision:penultimate_hidden_states"
    for name, roles, given in (
        ("WanImageToVideo", ("start frame",), {"clip_vision_output": first}),
        (
            "WanFirstLastFrameToVideo",
            ("start frame", "end frame"),
            {"clip_vision_start_image": first, "clip_vision_end_image": last},
        ),
    ):
        frames = dict(zip(("start frame", "end frame"), (clip[:1], clip[-1:]), strict=True))
        images = dict(zip(("start_image", "end_image"), frames.values(), strict=True))
        shown = {k: v for k, v in images.items() if k.replace("_image", " frame") in roles}
        entry = run(node("comfy_extras.nodes_wan", name), TEXT, TEXT, vae, 64, 64, 9, 1, **shown, **given)
        (theirs,) = conditioning_rows([entry])
        row = model.encode_controls([(role, frames[role]) for role in roles], clip)
        for own, value in row.items():
            assert torch.allclose(value, theirs[own], atol=1e-6), (name, own)
        found[name] = row[seen].shape[-2]
    assert found == {"WanImageToVideo": 5, "WanFirstLastFrameToVideo": 10}
    told = ""
    try:
        blind = ComfyModel(tiny_families.build("wan22_i2v_14b"), Words(), vae, 0.0, vision)
        blind.encode_controls([("start frame", clip[:1])], clip)
    except ValueError as error:
        told = str(error)
    assert "clip_vision must not be connected" in told


@check
@torch.no_grad()
def a_start_frame_of_hunyuan_video_is_what_its_node_gives() -> None:
    vae, clip = video_vae(), clip_of(9)
    model = ComfyModel(tiny_families.build("hunyuan_i2v"), Words(), vae)
    row = model.encode_controls([("start frame", clip[:1])], clip)
    hunyuan = node("comfy_extras.nodes_hunyuan", "HunyuanImageToVideo")
    alike(row, run(hunyuan, TEXT, vae, 64, 64, 9, 1, "v1 (concat)", start_image=clip[:1]))


@check
@torch.no_grad()
def a_start_frame_of_wan_5b_and_ltx_is_held_as_a_noise_mask_holds_it() -> None:
    clip = clip_of(9)
    for family, channels in (("wan22_5b", 48), ("ltxv", 16)):
        base = tiny_families.build(family)
        vae = video_vae(channels)
        model = ComfyModel(base, vae=vae)
        if family == "ltxv":
            vae.downscale_ratio = (lambda frames: (frames + 7) // 8, 32, 32)
            vae.encode = lambda pixels: torch.full(
                (1, 128, (len(pixels) + 7) // 8, 2, 2), float(pixels[0].mean())
            )
        row = model.encode_controls([("start frame", clip[:1])], clip)
        samples = model.encode_image(clip)
        mask = torch.ones(1, 1, *samples.shape[2:])
        mask[:, :, 0] = 0
        held = model.given_frames(samples, mask)
        assert held is not None
        assert row.keys() == held[0].keys(), (sorted(row), sorted(held[0]))
        for name, value in row.items():
            assert torch.allclose(value, held[0][name], atol=1e-4), (family, name)
        told = ""
        try:
            model.encode_controls([("start frame", clip[:1]), ("end frame", clip[-1:])], clip)
        except ValueError as error:
            told = str(error)
        assert "makes nothing of: end frame" in told, told


@check
@torch.no_grad()
def what_is_painted_anew_is_what_inpaint_model_conditioning_gives() -> None:
    mask = torch.zeros(1, 64, 64)
    mask[:, 16:48, :32] = 1.0
    nodes = importlib.import_module("nodes")
    vae, target = picture_vae(), clip_of(1)
    model = ComfyModel(tiny_families.build("flux_fill"), vae=vae)
    row = model.encode_controls([("inpaint", mask[..., None].expand(1, 64, 64, 3))], target)
    positive, _, _ = nodes.InpaintModelConditioning().encode(TEXT, TEXT, target, vae, mask)
    alike(row, positive[0])


@check
@torch.no_grad()
def a_reference_is_what_reference_latent_gives() -> None:
    vae = picture_vae()
    model = ComfyModel(tiny_families.build("flux_kontext"), vae=vae)
    row = model.encode_controls([("reference", clip_of(1)), ("reference", clip_of(1, 1))], clip_of(1, 2))
    reference, entry = node("comfy_extras.nodes_edit_model", "ReferenceLatent"), TEXT
    for seed in (0, 1):
        entry = [run(reference, entry, {"samples": vae.encode(clip_of(1, seed))})]
    alike(row, entry[0])


class Reader(Words):
    """A CLIP of Qwen-Image-Edit's kind: a token for the text, and the mean of each picture it is shown."""

    def tokenize(self, text: str, images: Any = (), llama_template: str = "") -> Any:
        """What it is given."""
        return text, [float(image.mean()) for image in images]

    def encode_from_tokens_scheduled(self, tokens: Any) -> Any:
        """Numbers for it."""
        text, means = tokens
        return [[torch.tensor([len(text), *means])[None, :, None].expand(1, -1, 48) / 100, {}]]


@check
@torch.no_grad()
def a_caption_of_qwen_image_edit_is_read_beside_its_pictures() -> None:
    clip = Reader()
    source = HostModel(ComfyModel(tiny_families.build("qwen_edit"), clip, picture_vae()))
    assert source.reads_pictures
    assert not HostModel(ComfyModel(tiny_families.build("flux_kontext"), clip, picture_vae())).reads_pictures
    pictures = [clip_of(1), clip_of(1, 1)]
    row = source.encode_text_beside("make it blue", [p.movedim(-1, 1) for p in pictures])
    plus = node("comfy_extras.nodes_qwen", "TextEncodeQwenImageEditPlus")
    entry = run(plus, clip, "make it blue", image1=pictures[0], image2=pictures[1])
    assert torch.equal(row["cross_attn"], entry[0])
    told = ""
    try:
        source.encode_text_beside("x", [pictures[0].movedim(-1, 1)] * 4)
    except ValueError as error:
        told = str(error)
    assert "at most 3" in told


class Tokens(Words):
    """A CLIP whose tokenizer is the host's own way with brackets, over letters."""

    def tokenize(self, text: str) -> Any:
        """Letters and weights."""
        own = importlib.import_module("comfy.sd1_clip")
        parsed = own.token_weights(own.escape_important(text), 1.0)
        return [(letter, w) for part, w in parsed for letter in own.unescape_important(part)]

    def encode_from_tokens_scheduled(self, tokens: Any) -> Any:
        """A row for each."""
        rows = [[float(ord(letter)), weight] for letter, weight in tokens]
        return [[torch.tensor([rows]), {}]]


@check
@torch.no_grad()
def brackets_of_captions_are_text_unless_weights_are_wanted() -> None:
    source = HostModel(ComfyModel(tiny_families.build("sd15"), Tokens()))
    for caption, read in (
        ("a (b) c", "a (b) c"),
        ("a (b:1.3)", "a (b:1.3)"),
        (r"a \(b\)", "a (b)"),
        ("a)", "a)"),
    ):
        row = source.encode_unweighted([caption])["cross_attn"][0]
        assert "".join(chr(int(c)) for c in row[:, 0]) == read
        assert (row[:, 1] == 1).all()
    weighed = source.encode_text(["a (b:1.3)"])["cross_attn"][0]
    assert weighed.shape == (3, 2)
    assert abs(float(weighed[2, 1]) - 1.3) < 1e-6


@check
@torch.no_grad()
def the_network_sees_every_kind_of_control() -> None:
    clip, other = clip_of(9), clip_of(9, 5)
    for family, channels, roles in (
        ("wan21_i2v", 16, ("start frame", "end frame")),
        ("wan22_5b", 48, ("start frame",)),
        ("hunyuan_i2v", 16, ("start frame",)),
    ):
        source = HostModel(ComfyModel(tiny_families.build(family), Words(), video_vae(channels)))
        _, captions, _ = tiny_families.data(family)
        text = {k: v for k, v in conditioning_rows(captions[:1])[0].items() if not k.startswith("concat")}
        x = torch.randn(1, *source.encode_clip(clip.movedim(-1, 1)).shape)
        for role in roles:
            found = []
            for own in (clip, other):
                frame = own[:1] if role == "start frame" else own[-1:]
                row = source.encode_controls([(role, frame.movedim(-1, 1))], clip.movedim(-1, 1))
                with torch.no_grad(), source.denoiser().opened():
                    found.append(source.denoiser().velocity(x, torch.tensor([0.5]), {**text, **row}))
            assert (found[0] - found[1]).abs().max() > 1e-4, (family, role)


@check
@torch.no_grad()
def a_clip_is_as_long_as_the_autoencoder_takes_it_and_pictures_are_pictures() -> None:
    for family, channels, most in (
        ("wan21_t2v", 16, 13),
        ("wan22_5b", 48, 13),
        ("qwen_image", 16, 1),
        ("flux_dev", 16, 1),
    ):
        source = HostModel(ComfyModel(tiny_families.build(family), vae=video_vae(channels)))
        assert source.clip_frames(15) == most, (family, source.clip_frames(15))
    assert [HostModel(ComfyModel(tiny_families.build(f))).frame_rate for f in ("wan21_t2v", "wan22_5b", "ltxv")] == [
        16.0, 24.0, 25.0,
    ]  # fmt: skip


@check
def a_clip_of_another_rate_tells_it_to_families_that_are_told() -> None:
    for family, rate, told in (
        ("ltxv", 25.0, True),
        ("cosmos_predict2", 16.0, True),
        ("wan21_t2v", 16.0, False),
        ("hunyuan_video", 24.0, False),
    ):
        source = HostModel(ComfyModel(tiny_families.build(family)))
        assert source.encode_rate(rate) == {}, family
        said = source.encode_rate(rate - 4)
        assert {k: v.tolist() for k, v in said.items()} == ({"frame_rate": [rate - 4]} if told else {}), (
            family
        )
    source = HostModel(ComfyModel(tiny_families.build("ltxv")))
    latent, captions, _ = tiny_families.data("ltxv")
    row = conditioning_rows(captions[:1])[0]
    (theirs,) = conditioning_rows([run(node("comfy_extras.nodes_lt", "LTXVConditioning"), TEXT, TEXT, 21.0)])
    assert torch.equal(theirs["frame_rate"], source.encode_rate(21.0)["frame_rate"])
    with torch.no_grad(), source.denoiser().opened():
        own, other = (
            source.denoiser().velocity(latent["samples"][:1], torch.tensor([0.5]), {**row, **more})
            for more in ({}, source.encode_rate(21.0))
        )
    assert (own - other).abs().max() > 1e-6


# -- starts that fail --------------------------------------------------------------------------------


@check
def a_start_that_fails_leaves_the_model_as_it_was() -> None:
    """Whatever fails, an optimizer's package that is missing or memory that runs out: nothing stays on the MODEL."""
    model = tiny_families.build("sd15")
    source = HostModel(ComfyModel(model))
    latent, captions, empty = tiny_families.data("sd15")
    with torch.inference_mode(False), torch.no_grad():
        conds = [row for caption in captions for row in conditioning_rows([caption])]
        own = [node_latent(source, latent)]
        data = dataset_from_latents(own, conds, conditioning_rows([empty])[0], None, 1, source.name)
    network = source.network.module
    before = [(name, type(m), m.training) for name, m in network.named_modules()], set(vars(network))
    built = trainer.build_optimizer

    def fail(*_: object) -> None:
        raise MemoryError

    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(steps=2, batch_size=1, lora=LoRAConfig(rank=2))
        trainer.build_optimizer = fail
        try:
            start(Path(folder), "t", source, data, config)
            raise AssertionError("it did not fail")
        except MemoryError:
            pass
        finally:
            trainer.build_optimizer = built
        after = [(name, type(m), m.training) for name, m in network.named_modules()], set(vars(network))
        assert after == before
        assert not list(Path(folder).iterdir())
        train(start(Path(folder), "t", source, data, config), 1)


@check
def few_blocks_stand_for_all_where_weights_are_fetched() -> None:
    """What a plan finds with few of the equal blocks is what all of them give, in every way to train."""
    tiny = tiny_families.FAMILIES["flux_dev"]
    deep = replace(tiny, unet=tiny.unet | {"depth": 6, "depth_single_blocks": 7})
    latent, captions, empty = tiny_families.data("flux_dev")
    with (
        mock.patch.dict(tiny_families.FAMILIES, {"deep": deep}),
        mock.patch.object(trainable, "is_fetched", return_value=True),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        source = HostModel(ComfyModel(tiny_families.build("deep")))
        conds = [row for caption in captions for row in conditioning_rows([caption])]
        own = [node_latent(source, latent)]
        data = dataset_from_latents(own, conds, conditioning_rows([empty])[0], None, 1, source.name)
        for switches in SWITCHES:
            config = TrainConfig(lora=LoRAConfig(rank=2), **dict.fromkeys(switches, True))
            asked = source, largest_batch(data, 1), resolved(config, source)
            assert needs._step_needs(*asked, short=True) == needs._step_needs(*asked, short=False)


def trained_twice(family: str, checkpointing: bool) -> tuple[list[Tensor], list[Tensor], str, list[int]]:
    """The LoRA without compiled blocks and with, what became of compiling, and how much was compiled by each step."""
    from torch._dynamo.testing import CompileCounterWithBackend

    counter, counts = CompileCounterWithBackend("eager"), []
    latent, captions, empty = tiny_families.data(family)
    found: list[list[Tensor]] = []
    told = ""
    with torch.inference_mode(False), torch.enable_grad():
        for compiled in (False, True):
            source = HostModel(ComfyModel(tiny_families.build(family)))
            conds = [row for caption in captions for row in conditioning_rows([caption])]
            own = [node_latent(source, latent)]
            data = dataset_from_latents(own, conds, conditioning_rows([empty])[0], None, 1, source.name)
            rollout = RolloutConfig(max_step_offset=3, probability=0.7, steps_per_trajectory=10)
            config = TrainConfig(
                steps=9,
                batch_size=2,
                lora=LoRAConfig(rank=2),
                rollout=rollout,
                compile=compiled,
                gradient_checkpointing=checkpointing,
            )
            made = trainer.Regions
            trainer.Regions = lambda network, made=made: made(network, counter)  # type: ignore[misc,assignment]
            try:
                with trainer.Trainer(source, data, config) as run:
                    told = run.compile()
                    for _ in range(5):
                        run.step()
                        counts.append(counter.frame_count)
                    told = run.compile()
                    found.append([p.detach().clone() for p in run.parameters])
            finally:
                trainer.Regions = made  # type: ignore[misc]
            assert all("forward" not in vars(m) for m in source.network.module.modules())
    return *found, told, counts[5:]  # type: ignore[return-value]


def compiled_blocks_change_no_bit(family: str, checkpointing: bool = False) -> None:
    plain, compiled, told, counts = trained_twice(family, checkpointing)
    assert "compiled in" in told, told
    assert counts[0] > 0, counts
    assert counts[2:] == counts[-1:] * 3, counts
    assert all(torch.equal(a, b) for a, b in zip(plain, compiled, strict=True))


@check
def compiled_blocks_of_sd3_train_the_same_lora() -> None:
    compiled_blocks_change_no_bit("sd3")


@check
def compiled_blocks_of_sd3_train_the_same_lora_with_checkpointing() -> None:
    compiled_blocks_change_no_bit("sd3", checkpointing=True)


@check
def compiled_blocks_of_flux_which_overwrites_what_it_read_train_the_same_lora() -> None:
    compiled_blocks_change_no_bit("flux_dev")


if __name__ == "__main__":
    with results.open("w") as out:
        for function in CHECKS:
            if ONLY not in function.__name__ or (not ONLY and COMPILED in function.__name__):
                continue
            error = None
            try:
                function()
            except Exception:
                error = traceback.format_exc()[-1500:]
            out.write(json.dumps({"name": function.__name__, "error": error}) + "\n")
