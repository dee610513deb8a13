"""Unit tests that mean something on a GPU: is it the CPU's result, does it resume, does the loop wait for the card?"""

from __future__ import annotations

import copy
import os
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from gpu_check import Check

ROOT = Path(__file__).resolve().parents[2]
STEPS = 4
WAITED = "called a synchronizing CUDA operation"
"""In every warning of PyTorch about a place where the host waits for the card."""
NEAR = 1e-3


def run(check: Check, _option: str) -> None:
    """Every case; one that raises is a result, and the others go on."""
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.allow_tf32 = False
    cases: tuple[Callable[[Check], None], ...] = (solvers, training_step, resume, precisions, memory, waits)
    for case in cases:
        try:
            case(check)
        except Exception as err:
            where = traceback.format_exc(limit=-4)
            check.tell(case.__name__, False, error=f"{type(err).__name__}: {err}"[:1000], where=where)


def solvers(check: Check) -> None:
    """Every solver in float64, on the model whose solution is known."""
    from rollout_trainer.samplers import SAMPLERS, integrate

    def denoise(x: Tensor, sigma: Tensor, _rows: Tensor) -> Tensor:
        s = sigma.reshape(-1, *[1] * (x.ndim - 1))
        variance = (1 - s) ** 2 * 0.25 + s**2
        return 0.3 + (1 - s) * 0.25 / variance * (x - (1 - s) * 0.3)

    x = torch.randn(3, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sigmas = torch.linspace(1, 0, 9, dtype=torch.float64)
    for name in SAMPLERS:
        there, here = (
            integrate(denoise, x.to(device), sigmas.to(device), sampler=name, process="flow").cpu()
            for device in (check.device, "cpu")
        )
        far = float((there - here).abs().max())
        check.tell(f"{name} in float64 is the CPU's", far < 1e-10, absolute=far)


def training_step(check: Check) -> None:
    """Steps with rollouts in float32."""
    here, there = (lora(trainer("cpu")), lora(trainer(check.device)))
    far = distance(there, here)
    check.tell(f"{STEPS} steps with rollouts are the CPU's", far < NEAR, relative=far)


def resume(check: Check) -> None:
    """A run that was saved and loaded half-way, with deterministic algorithms."""
    whole = lora(trainer(check.device))
    with trainer(check.device) as first:
        steps(first, STEPS // 2)
        state = first.state()
    with trainer(check.device) as second:
        second.load(state)
        steps(second, STEPS - STEPS // 2)
        resumed = second.adapter.state().tensors
    same = all(torch.equal(whole[name], resumed[name]) for name in whole)
    check.tell("a resumed run is the uninterrupted one, bit for bit", same, relative=distance(resumed, whole))


def precisions(check: Check) -> None:
    """bf16, and fp16 with its scaler."""
    plain = losses(trainer(check.device))
    for autocast in ("bf16", "fp16"):
        with trainer(check.device, autocast=autocast) as own:
            steps(own, STEPS)
            found, skipped = own.history.columns["total"], own.history.columns["skipped"]
            scale = float(own.scaler.get_scale()) if own.scaler.is_enabled() else 1.0
        kept = [(a, b) for a, b, s in zip(found, plain, skipped, strict=True) if not s]
        worst = max((abs(a / b - 1) for a, b in kept), default=1.0)
        check.tell(f"{autocast} trains", worst < 0.15, worst=worst, skipped=sum(skipped), scale=scale)


def memory(check: Check) -> None:
    """What makes a model fit trains the same LoRA, and takes less."""
    usual = lora(trainer(check.device, gradient_checkpointing=True))
    offloaded = lora(trainer(check.device, gradient_checkpointing=True, activation_offload=True))
    far = distance(offloaded, usual)
    check.tell("offloaded activations train the same LoRA", far < NEAR, relative=far)
    swapped = lora(trainer(check.device, {"swap": True}, gradient_checkpointing=True))
    far = distance(swapped, usual)
    check.tell("swapped weights train the same LoRA", far < NEAR, relative=far)
    for form in ("float8", "int8"):
        here, there = (
            lora(trainer(device, {"weights": form}, autocast="off")) for device in ("cpu", check.device)
        )
        far = distance(there, here)
        check.tell(f"{form} weights train the CPU's LoRA", far < NEAR, relative=far)


def waits(check: Check) -> None:
    """Where a step waits for the card, which it does to read its loss."""
    if check.device == "cpu":
        check.tell("a step waits for the card once", True, places="no card")
        return
    for kind, rollout in kinds().items():
        worst: Counter[str] = Counter()
        with trainer(check.device, rollout=rollout) as own:
            steps(own, 2)
            for _ in range(STEPS):
                found = waited(own)
                worst = max(worst, found, key=Counter.total)
        check.tell(f"a step waits for the card once: {kind}", worst.total() == 1, places=dict(worst))


def kinds() -> dict[str, Any]:
    """Steps without rollouts, with them and with ReflexFlow, their states used once and four times."""
    from rollout_trainer.training.objective.config import ReflexFlowConfig, RolloutConfig

    rollouts = RolloutConfig(max_step_offset=3, probability=0.7)
    off = replace(rollouts, reflexflow=ReflexFlowConfig("off"))
    found = {"plain": RolloutConfig(), "rollouts": off, "ReflexFlow": rollouts}
    return found | {f"{name}, reuse 4": replace(found[name], reuse=4) for name in ("rollouts", "ReflexFlow")}


def waited(own: Any) -> Counter[str]:
    """How often a step waits in which line."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            own.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return Counter(
        f"{os.path.relpath(w.filename, ROOT)}:{w.lineno}" for w in caught if WAITED in str(w.message)
    )


# --- beside -------------------------------------------------------------------------------------------

_sources: dict[str, Any] = {}


def trainer(device: str, loading: dict[str, Any] | None = None, **settings: Any) -> Any:
    """A trainer of the demo's model with rollouts; `loading`: how the model is loaded."""
    from rollout_trainer.training.lora.adapter import LoRAConfig
    from rollout_trainer.training.models.families import load_diffusers
    from rollout_trainer.training.objective.config import RolloutConfig
    from rollout_trainer.training.trainer.config import TrainConfig
    from rollout_trainer.training.trainer.trainer import Trainer

    key = f"{device} {loading}"
    if key not in _sources:
        _sources[key] = load_diffusers(ROOT / "demo" / "model", device, **loading or {})
    rollout = RolloutConfig(max_step_offset=3, probability=0.7)
    lora_config = LoRAConfig(rank=4, alpha=4.0, preset="attention")
    config = TrainConfig(steps=100, batch_size=4, lora=lora_config, rollout=rollout)
    return Trainer(copy.copy(_sources[key]), data(), replace(config, **settings))


def data() -> Any:
    """The demo's pictures, encoded on the CPU once."""
    from rollout_trainer.training.data.dataset import read_image_folder
    from rollout_trainer.training.data.encoding import encode
    from rollout_trainer.training.models.families import load_diffusers

    if "data" not in _sources:
        source = load_diffusers(ROOT / "demo" / "model", "cpu")
        _sources["data"] = encode(read_image_folder(ROOT / "demo" / "data"), source)
    return _sources["data"]


def steps(own: Any, n: int) -> None:
    """Train."""
    for _ in range(n):
        own.step()


def lora(own: Any) -> dict[str, Tensor]:
    """The adapter after the steps."""
    with own:
        steps(own, STEPS)
        return dict(own.adapter.state().tensors)


def losses(own: Any) -> list[float]:
    """The losses of the steps."""
    with own:
        steps(own, STEPS)
        return list(own.history.columns["total"])


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Norm of the difference over the norm of the second."""
    square = sum(float((a[k].double() - b[k].double()).square().sum()) for k in b)
    return float((square / sum(float(t.double().square().sum()) for t in b.values())) ** 0.5)
