"""Which card trains which model: the plan's prediction for networks of real size; and that against a real step.

    python benchmarks/memory.py [--models "Flux 12B" ...] [--pixels 512 1024]     the table, from shapes alone
    python benchmarks/memory.py --save docs/memory.json                            the same, computed and stored first;
                                                                                   it says how long each plan took
    python benchmarks/memory.py --previews                                         what films and prompts add to it
    python benchmarks/memory.py --measure "Klein 4B" [--pixels 128] [--tokens 32]  a step on this machine's CPU
    python benchmarks/memory.py --measure "Flux 12B" --weights float8 --pixels 128 the same with smaller weights

Batch 1, LoRA of rank 16 on the attention, AdamW, weights in bfloat16 where nothing else is said, the network alone:
text encoders and the autoencoder lie in the computer's memory while it trains. Every figure of the table is predicted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from real_models import MODELS, VAES, Model, adapters_of_shapes, autoencoder
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rollout_trainer.training.lora.adapter import LoRAConfig
from rollout_trainer.training.models import diffusers as folders
from rollout_trainer.training.models import visits
from rollout_trainer.training.models.diffusers import DiffusersModel
from rollout_trainer.training.models.stored import FORMS, store
from rollout_trainer.training.plan.memory import GIB, SWITCHES, Weights, weights_of
from rollout_trainer.training.plan.needs import Needs, decoding_needs, step_needs
from rollout_trainer.training.trainer.config import TrainConfig, resolved
from rollout_trainer.training.trainer.trainer import Trainer, training_mode

CARDS = (8, 12, 16, 24, 32, 48, 80)
"""Gigabytes, of which `CARD_RESERVE` is left alone."""
STORED = Path(__file__).resolve().parents[1] / "docs" / "memory.json"
"""Predictions that were computed before: they take minutes."""
MAPPED = str(1 << 20)
"""Bytes from which on the C library gives memory back at once."""


def config_of(model: Model, switches: tuple[str, ...]) -> TrainConfig:
    """A run of rank 16."""
    lora = LoRAConfig(rank=16, targets=model.targets)
    return replace(TrainConfig(lora=lora), **dict.fromkeys(switches, True))  # type: ignore[arg-type]


def predicted(model: Model, pixels: int) -> tuple[dict[tuple[str, ...], Needs], Weights]:
    """Needs for each of `SWITCHES`, and weights, of the whole model; how long it took goes to the error stream."""
    source = model.on_paper()
    begin = time.process_time()
    with adapters_of_shapes():
        needs = {s: step_needs(source, model.batch(pixels), config_of(model, s)) for s in SWITCHES}
    print(f"{model.name}, {pixels}: {time.process_time() - begin:.1f} s of processor time", file=sys.stderr)
    return needs, weights_of(source.module)


def stored(file: Path) -> dict[str, Any]:
    """Predictions by model and size, as `keep` wrote them; none where there is no such file."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def known(model: Model, pixels: int, file: Path = STORED) -> tuple[dict[tuple[str, ...], Needs], Weights]:
    """The prediction as it is stored, or computed now."""
    entry = stored(file).get(model.name, {}).get(str(pixels))
    if entry is None:
        return predicted(model, pixels)
    needs = {switches: Needs(**own) for switches, own in zip(SWITCHES, entry["needs"], strict=True)}
    return needs, Weights(**entry["weights"])


def keep(models: list[str], sizes: list[int], file: Path) -> None:
    """Compute predictions, and write them down one by one."""
    for name in models:
        for pixels in sizes:
            needs, weights = predicted(MODELS[name], pixels)
            entry = {"needs": [asdict(needs[switches]) for switches in SWITCHES], "weights": asdict(weights)}
            found = stored(file)
            found.setdefault(name, {})[str(pixels)] = entry
            file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def ways(
    needs: dict[tuple[str, ...], Needs], weights: Weights, swaps: bool = True
) -> Iterator[tuple[str, int | None]]:
    """How to train and what it takes, about from the fastest to the slowest; None: the network cannot.

    Args:
        swaps: whether the weights can be fetched block by block, as those of UNets cannot.
    """
    plain, recomputed, offloaded = (needs[switches] for switches in SWITCHES)
    yield "as it is", weights.total + plain.peak
    yield "checkpointing", weights.total + recomputed.peak
    yield "checkpointing, float8", weights.stored(0.5) + recomputed.peak
    yield "checkpointing, offload, float8", weights.stored(0.5) + offloaded.peak
    yield "checkpointing, nf4", weights.stored(0.27) + recomputed.peak
    yield "checkpointing, swap", weights.swapped + recomputed.peak if swaps else None
    yield "checkpointing, offload, swap", weights.swapped + offloaded.peak if swaps else None


def table(models: list[str], sizes: list[int]) -> None:
    """Print a row for each model and size."""
    names = [name for name, _ in ways(dict.fromkeys(SWITCHES, NOTHING), Weights(0, 0, 0, 0, 0))]
    print(f"| model | px | {' | '.join(names)} | smallest card |")
    print("|---|---:|" + "---:|" * len(names) + "---|")
    for name in models:
        for pixels in sizes:
            needs, weights = known(MODELS[name], pixels)
            found = list(ways(needs, weights, MODELS[name].swaps))
            cells = ["no" if peak is None else f"{peak / GIB:.1f}" for _, peak in found]
            print(f"| {name} | {pixels} | {' | '.join(cells)} | {smallest(found)} |", flush=True)


@contextmanager
def coming(parts: list[nn.Module], _device: torch.device, _on_paper: bool = False) -> Iterator[None]:
    """As `visits.fetched`, on paper and as if the parts had another home than the processor's memory."""
    taken = [torch.empty_like(t) for t in visits.weights_in(parts)]
    yield
    del taken


def decoded(model: Model, pixels: int) -> tuple[int, dict[bool, int]]:
    """Bytes of a decoder; and what decoding one picture takes, by whether the decoder comes part by part."""
    source = model.on_paper(tuple(1 for _ in model.depths))
    with FakeTensorMode(allow_non_fake_inputs=True):
        source.vae = autoencoder(model)
    kind, shape = type(source), (model.channels, pixels // model.scale, pixels // model.scale)
    kind.decoder = DiffusersModel.decoder  # type: ignore[method-assign]
    found = {}
    for in_turn in (False, True):
        kind.crowded = in_turn  # type: ignore[method-assign, assignment]
        with patch.object(visits, "fetched", coming), patch.object(folders, "fetched", coming):
            found[in_turn] = decoding_needs(source, shape)
    return sum(t.nbytes for t in visits.weights_in(visits.decoding(source.vae))), found


def raised(needs: Needs, weights: int, swapped: bool, decoder: int, decoding: dict[bool, int]) -> float:
    """By how much a film and prompts of the data's size, with guidance, raise the peak."""
    crowded = swapped or folders.CROWDED * decoder > weights
    rows = 1 if needs.fetched else 2  # with activation_offload the halves run one after the other
    highest = max(decoding[crowded], rows * needs.inference)
    return replace(needs, preview=highest).of_previews / (weights + needs.peak)


def previews(models: list[str], sizes: list[int]) -> None:
    """Print by how much pictures raise the peak of a run, for models that decode while they train."""
    print(
        "| model | px | decoder | decoding, whole / in turn, MiB | weights | as it is | checkpointing | and offload |"
    )
    print("|---|---:|---:|---:|---|---:|---:|---:|")
    for name in models:
        for pixels in sizes if name in VAES else ():
            needs, weights = known(MODELS[name], pixels)
            decoder, decoding = decoded(MODELS[name], pixels)
            facts = f"{decoder >> 20} | {decoding[False] >> 20} / {decoding[True] >> 20}"
            forms = {"bfloat16": weights.total, "float8": weights.stored(0.5), "nf4": weights.stored(0.27)}
            if MODELS[name].swaps:
                forms["swap"] = weights.swapped
            for form, size in forms.items():
                cells = [raised(own, size, form == "swap", decoder, decoding) for own in needs.values()]
                told = " | ".join(f"{cell:.1%}" for cell in cells)
                print(f"| {name} | {pixels} | {facts} | {form} | {told} |", flush=True)


NOTHING = Needs(**{f.name: 0 for f in fields(Needs)})


def smallest(found: list[tuple[str, int | None]]) -> str:
    """The smallest card on which one of the ways fits, and the fastest way that does there."""
    for card in CARDS:
        fitting = [way for way, peak in found if peak is not None and peak + GIB <= card * GIB]
        if fitting:
            return f"{card} GB: {fitting[0]}"
    return "none"


def measure(model: Model, pixels: int, tokens: int, form: str = "full", steps: int = 2) -> dict[str, Any]:
    """A real step on the CPU: its highest resident size beyond what the process had, and the plan's figure.

    Args:
        form: how the matrices of its blocks are stored, full or one of `stored.FORMS`.
    """
    change = None if form == "full" else partial(store, form=form, device="meta")
    source, data = model.random("cpu", change=change), model.dataset(pixels, tokens=tokens)
    config = resolved(config_of(model, ("gradient_checkpointing",)), source)
    weights = weights_of(source.module).total
    begin = time.perf_counter()
    needs = step_needs(source, data.batch(torch.arange(1)), config)
    planning = time.perf_counter() - begin
    before = resident() - weights
    Path("/proc/self/clear_refs").write_text("5")  # resets the highest resident size
    begin = time.perf_counter()
    with training_mode(), Trainer(source, data, config) as trainer:
        loss = [trainer.step().loss for _ in range(steps)][-1]
    seconds = (time.perf_counter() - begin) / steps
    peak = resident("VmHWM") - before
    plan = weights + needs.peak
    return {
        "model": model.name,
        "weights": form,
        "weights_gib": round(weights / GIB, 3),
        "pixels": pixels,
        "predicted_gib": round(plan / GIB, 3),
        "measured_gib": round(peak / GIB, 3),
        "ratio": round(peak / plan, 4),
        "beside_weights_mib": [round(x / (1 << 20), 1) for x in (needs.peak, peak - weights)],
        "seconds_a_step": round(seconds, 1),
        "seconds_of_planning": round(planning, 1),
        "loss_finite": loss == loss,
    }


def resident(which: str = "VmRSS") -> int:
    """Bytes that the process has in memory, or had at most."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(which + ":")[1].split()[0]) * 1024


def main() -> None:
    """Print what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME")
    parser.add_argument("--pixels", type=int, nargs="+", default=[512, 1024])
    parser.add_argument(
        "--save", type=Path, metavar="JSON", help="compute the predictions anew and store them"
    )
    parser.add_argument("--previews", action="store_true", help="what pictures add")
    parser.add_argument("--measure", choices=MODELS, metavar="NAME", help="train this one for two steps")
    parser.add_argument("--tokens", type=int, default=32, help="of text, for --measure")
    parser.add_argument("--steps", type=int, default=2, help="for --measure")
    parser.add_argument("--weights", choices=("full", *FORMS), default="full", help="for --measure")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.measure and os.environ.get("MALLOC_MMAP_THRESHOLD_") != MAPPED:
        # Read by the C library as a process begins. Without it matrices that come and go leave gaps that stay resident.
        os.execve(
            sys.executable, [sys.executable, *sys.argv], os.environ | {"MALLOC_MMAP_THRESHOLD_": MAPPED}
        )
    if options.measure:
        print(
            json.dumps(
                measure(
                    MODELS[options.measure], options.pixels[0], options.tokens, options.weights, options.steps
                )
            )
        )
        return
    if options.previews:
        previews(options.models, options.pixels)
        return
    if options.save:
        keep(options.models, options.pixels, options.save)
    table(options.models, options.pixels)


if __name__ == "__main__":
    main()
