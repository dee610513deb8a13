"""Networks of real size with random weights: what they take against the plan, and how fast they are.

For each network and size: the fastest way of `benchmarks/memory.py` that the plan says will fit on a card of so many
gigabytes, under that limit. A way that runs out of memory, or takes over a tenth more or less than predicted, is not
good. Predictions are those of docs/memory.json. At toy size every way is taken once, on a network of that kind.
"""

from __future__ import annotations

import gc
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from gpu_check import Check

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

GIB = 1 << 30
CUBE = 8192
"""Side of the matrices whose product says what the card can do."""


@dataclass(frozen=True)
class Case:
    """One training."""

    model: str
    pixels: int
    card: int
    """Gigabytes that it may take; 0: all."""
    rollouts: bool = False
    recomputed: bool = False
    """Without checkpointing no way is tried."""
    compiled: bool = False


KLEIN = Case("Klein 4B", 1024, 0)
FLUX_512, FLUX_1024 = (Case("Flux 12B", pixels, 0, recomputed=True) for pixels in (512, 1024))
FLUX = (Case("Flux 12B", 1024, 8), Case("Flux 12B", 512, 8, rollouts=True), FLUX_512, FLUX_1024,
        Case("Flux 12B", 1024, 0), Case("Flux 12B", 1024, 16))  # fmt: skip
OTHERS = (Case("Qwen-Image 20B", 1024, 24), KLEIN, Case("Z-Image 6B", 1024, 0),
          Case("Z-Image 6B", 1024, 12), Case("SDXL", 1024, 8), Case("Klein 9B", 1024, 16),
          Case("SD3.5 large", 1024, 16), Case("Wan 2.2 5B, 1 frame", 512, 12),
          Case("Qwen-Image 20B", 1024, 0))  # fmt: skip
CASES = {
    "flux": FLUX,
    "others": OTHERS,
    "compiled": tuple(
        replace(case, compiled=compiled)
        for case in (KLEIN, FLUX_512, FLUX_1024)
        for compiled in (False, True)
    ),
}


def run(check: Check, option: str) -> None:
    """Every case of `option`, a key of `CASES`; one that fails does not stop the next."""
    rate = matrix_rate(check)
    if check.toy:
        return every_way(check, rate)
    for case in CASES[option]:
        try:
            check.tell(name_of(case), **on_a_card(check, case, rate))
        except Exception as err:
            where = traceback.format_exc(limit=-8)
            check.tell(name_of(case), False, error=f"{type(err).__name__}: {err}"[:500], where=where)
            if not isinstance(err, torch.OutOfMemoryError) and "CUDA error" in str(err):
                raise  # nothing works in this process any more
        gc.collect()
        torch.cuda.empty_cache()


def name_of(case: Case) -> str:
    """For the results."""
    limit = f", {case.card} GB" if case.card else ""
    more = "".join(f", {name}" for name in ("rollouts", "recomputed", "compiled") if getattr(case, name))
    return f"{case.model}, {case.pixels} px{limit}{more}"


def every_way(check: Check, rate: float) -> None:
    """Train a small network in every way."""
    import real_models
    from memory import predicted as plan_of

    model = real_models.small()
    needs, weights = plan_of(model, 64)
    for way in WAYS(weights):
        own = needs[way.switches]
        facts = train(check, Case(model.name, 64, 0), model, way, own, rate)
        predicted = way.size + own.peak
        check.tell(way.name, facts["seconds"] > 0 and predicted > 0, **facts)


def on_a_card(check: Check, case: Case, rate: float) -> dict[str, Any]:
    """Train in the fastest way that should fit, under the card's limit, and compare."""
    import real_models
    from memory import known

    model = real_models.MODELS[case.model]
    needs, weights = known(model, case.pixels)
    budget = (case.card - 1) * GIB if case.card else 1 << 60
    known_ways = [way for way in WAYS(weights) if way.switches or not case.recomputed]
    fitting = [way for way in known_ways if way.size + needs[way.switches].peak <= budget]
    way = fitting[0] if fitting else known_ways[-1]
    predicted = way.size + needs[way.switches].peak
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, case.card * GIB / total) if case.card else 1.0)
    facts = train(check, case, model, way, needs[way.switches], rate)
    peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    sizes = {"peak_gib": peak / GIB, "predicted_gib": predicted / GIB, "reserved_gib": reserved / GIB}
    near = 0.0 if case.compiled else 0.9  # what compiled code spares, no plan knows
    return {"ok": near < peak / predicted < 1.1, "way": way.name, **sizes, **facts}


def train(check: Check, case: Case, model: Any, way: Way, needs: Any, rate: float) -> dict[str, Any]:
    """Seconds of a step in this way, and its share of what the card can do."""
    from memory import config_of

    from rollout_trainer.training.models.stored import store
    from rollout_trainer.training.models.swap import Swap
    from rollout_trainer.training.objective.config import RolloutConfig
    from rollout_trainer.training.trainer.config import cost
    from rollout_trainer.training.trainer.trainer import Trainer, training_mode

    config = replace(config_of(model, way.switches), compile=case.compiled)
    if case.rollouts:
        config = replace(config, rollout=RolloutConfig(max_step_offset=3, probability=0.5))
    place = "cpu" if way.swap else check.device
    begin = time.perf_counter()
    source = model.random(
        place, change=None if way.form == "full" else partial(store, form=way.form, device="meta")
    )
    if way.swap:
        source.device = torch.device(check.device)
        source.swap = Swap(source.module, source.device)
    steps = 2 if check.toy else 4 if not case.rollouts else 12
    with training_mode(), Trainer(source, model.dataset(case.pixels), config) as trainer:
        trainer.step()
        wait(check)
        ready = time.perf_counter() - begin
        if not check.toy:
            torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        for _ in range(steps):
            trainer.step()
        wait(check)
        seconds = (time.perf_counter() - begin) / steps
    work = needs.flops + cost(config, source) * needs.inference_flops
    return {"seconds": seconds, "mfu": work / seconds / rate, "ready_after": ready}


def pictures(check: Check, _option: str) -> None:
    """By how much a film and a prompt raise the peak of SDXL at 512 px, where a step takes least beside the weights."""
    import real_models
    from memory import config_of

    from rollout_trainer.training.pictures.sampling import Drawing, Prompts
    from rollout_trainer.training.trainer.trainer import Trainer, training_mode

    pixels = 64 if check.toy else 512
    model = real_models.small() if check.toy else real_models.MODELS["SDXL"]
    source, data = model.random(check.device), model.dataset(pixels)
    with torch.device("meta"):
        source.vae = real_models.autoencoder(model)
    source.vae = real_models.filled(source.vae, "cpu")
    source.encode_text = lambda captions: data.batch(torch.zeros(len(captions), dtype=torch.long)).cond
    drawing = Drawing(source, Prompts(("a cat",), "", pixels, pixels, steps=2, cfg=4.0))
    with training_mode(), Trainer(source, data, config_of(model, ("gradient_checkpointing",))) as trainer:

        def draw() -> None:
            frames = trainer.take_film().frames
            check.tell("drawn", len(frames) > 1 and trainer.draw(drawing).isfinite().all().item())

        trainer.step()
        step, drawn = peak_of(check, trainer.step), peak_of(check, draw)
    check.tell("pictures raise the peak by 5 % at most", drawn <= 1.05 * step, ratio=max(drawn / step, 1))


def peak_of(check: Check, act: Callable[[], object]) -> float:
    """The highest of the bytes on the card while it acts; at toy size 1."""
    if check.toy:
        act()
        return 1.0
    torch.cuda.reset_peak_memory_stats()
    act()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


@dataclass(frozen=True)
class Way:
    """How the weights are kept, and which switches are on."""

    form: str
    swap: bool
    switches: tuple[str, ...]
    size: int
    """Bytes of the weights."""

    @property
    def name(self) -> str:
        """For the results."""
        return "+".join([self.form, *(["swap"] if self.swap else []), *self.switches])


SWITCHES: tuple[tuple[str, ...], ...] = (
    (),
    ("gradient_checkpointing",),
    ("gradient_checkpointing", "activation_offload"),
)


def WAYS(weights: Any) -> Iterator[Way]:  # noqa: N802
    """Ways to train, the fastest first."""
    plain, again, offload = SWITCHES
    in_blocks = weights.in_blocks - weights.linear // 2
    half = replace(weights, total=weights.stored(0.5), block=weights.block // 2, in_blocks=in_blocks)
    yield Way("full", False, plain, weights.total)
    yield Way("full", False, again, weights.total)
    yield Way("float8", False, again, weights.stored(0.5))
    yield Way("float8", False, offload, weights.stored(0.5))
    yield Way("full", True, again, weights.swapped)
    yield Way("float8", True, offload, half.swapped)


def wait(check: Check) -> None:
    """Until the card has done what it was given."""
    if not check.toy:
        torch.cuda.synchronize()


def matrix_rate(check: Check) -> float:
    """Operations per second of a large product in bfloat16: what the card can do."""
    side = 256 if check.toy else CUBE
    a, b = (torch.randn(side, side, device=check.device, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(8):
        wait(check)
        begin = time.perf_counter()
        a @ b
        wait(check)
        times.append(time.perf_counter() - begin)
    rate = 2 * side**3 / sorted(times)[len(times) // 2]
    check.tell("rate of a large product", rate > 0, teraflops=rate / 1e12)
    return rate
