"""A real ComfyUI on its GPU: sample, train with rollouts, sample, in every way that it has of keeping weights.

What could go wrong there, and nowhere on a CPU, is an assertion each:

- weights that were fetched while sampling are inference tensors, which no backward pass may keep;
- weights fetched into a buffer serve the next layers too: what a backward pass keeps of them is wrong, in silence
  (the LoRA would differ from the CPU's, and with recomputation from without);
- what lies on the device is not what the file held: the model's fingerprint would differ, and no run resume elsewhere;
- the host reloads a model while an adapter is on it, or with parameters that have lost its own attributes: the MODEL
  would sample other bits than before;
- something of ours stays on the device: bytes are counted after the host has let go of all models.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpu_check import Check

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "host"))

from comfyui_process import NODES_FOR_TESTS, ComfyUI, find_installation, running  # noqa: E402
from prompt_builder import Link, PromptBuilder  # noqa: E402

FAMILIES = ("sd3", "flux", "wan")
STEPS = 6
NEAR = 1e-3
"""Largest relative difference from the CPU, of a LoRA (norm of the difference) and of a sampling's norm."""
LOGGED = 400
"""Lines of a host's log that are kept."""
SLACK = 1 << 20
"""Bytes that may lie on the device afterwards beyond what did before: the libraries' own workspaces."""


def reference(check: Check, _option: str) -> None:
    """The same on the CPU, for the others to be compared with."""
    with host(check, ("--cpu",)) as comfyui:
        for family in families(check):
            found = flow(comfyui, family, check.work / f"reference-{family}")
            check.tell(family, bool(found["lora"]), hooks=found["hooks"], loss=found["loss"])
            file = check.work / f"reference-{family}.json"
            file.with_suffix(".partial").write_text(json.dumps(found))
            file.with_suffix(".partial").rename(file)


def mode(check: Check, option: str) -> None:
    """One way of keeping weights: ``dynamic`` is the host's default on NVIDIA, the others are its arguments."""
    arguments = tuple(option.split()) if option.startswith("--") else ()
    if check.toy:
        arguments = ("--cpu",)
    with host(check, arguments) as comfyui:
        device = look(comfyui)
        dynamic = not {"--disable-dynamic-vram", "--novram"} & set(arguments)
        ok = check.toy or (device["device"].startswith("cuda") and device["dynamic"] == dynamic)
        check.tell("the host computes as it was asked to", ok, **device)
        for family in families(check):
            one_family(check, comfyui, family, option)
            waits(check, comfyui, family)
        # Everything has been loaded, trained and let go of once: now the bytes may not grow.
        before = look(comfyui)["allocated"]
        flow(comfyui, families(check)[0], check.work / "again", keep=option != "nothing kept", seed=6)
        after = look(comfyui)["allocated"]
        grown = None if before is None or after is None else after - before
        check.tell("nothing of ours stays on the device", grown is None or grown <= SLACK, bytes=grown)


def one_family(check: Check, comfyui: ComfyUI, family: str, option: str) -> None:
    """What one family gives here against the CPU's."""
    keep = option != "nothing kept"
    found = flow(comfyui, family, check.work / f"{option.strip('-')}-{family}", keep)
    known = awaited(check.work / f"reference-{family}.json")
    check.tell(f"{family}: the MODEL samples the same bits after training", found["before"] == found["after"])
    check.tell(f"{family}: nothing is left on the network", found["left"] == [] and found["hooks"] == 0)
    far = distance(found["lora"], known["lora"])
    check.tell(f"{family}: the LoRA is the CPU's", far < NEAR, relative=far)
    far = distance(found["recomputed"], found["lora"])
    check.tell(f"{family}: recomputing trains the same LoRA", far < NEAR, relative=far)
    same = found["fingerprint"] == known["fingerprint"]
    check.tell(f"{family}: the model is the one that the CPU knows", same, fingerprint=found["fingerprint"])
    far = abs(found["norm"] / known["norm"] - 1)
    check.tell(f"{family}: the LoRA samples as on the CPU", far < NEAR, relative=far)
    fell = found["loss"][1] < found["loss"][0]
    check.tell(f"{family}: the validation loss falls", fell, loss=found["loss"])


def waits(check: Check, comfyui: ComfyUI, family: str) -> None:
    """Where a step waits for the card, beside the reading of its loss."""
    graph = PromptBuilder()
    model = graph.add("TestTinyModel", family=family, dtype="float32 everywhere")
    data = graph.add("TestTinyData", family=family, n=4, side=8, ragged=True)
    run = training(graph, model, data, "waits", 5, recomputed=False)["begin"]
    watched = graph.add("TestWaits", run=run, begin=True)
    done = graph.add("RolloutTrainSteps", run=watched, steps=STEPS)
    node = str(graph.add("TestWaits", run=done[:2], begin=False)[0])
    _first, *others = execute(comfyui, graph)[node]["waits"] or [{}]
    most = max((sum(places.values()) for places in others), default=0)
    check.tell(f"{family}: a step waits for the card once", most <= 1, most=most, places=others[-1:])


def real(check: Check, option: str) -> None:
    """Flux of real size in the host as it is by default, on a card of `option` GiB: the rest of it is taken away."""
    taken = None if check.toy else all_but(int(option) << 30)
    with host(check, ("--cpu",) if check.toy else ()) as comfyui:
        begin, seconds, sampled = time.monotonic(), {}, {}

        def timed(name: str) -> dict[str, Any]:
            nonlocal begin
            found, now = execute(comfyui, graph), time.monotonic()
            seconds[name], begin = round(now - begin, 1), now
            sampled[name] = [found[drawn]["digest"][0], found[drawn]["norm"][0]]
            return found

        graph = PromptBuilder()
        size = (
            {"depth": 1, "side": 16, "tokens": 16} if check.toy else {"depth": 0, "side": 64, "tokens": 512}
        )
        dtype = "float32" if check.toy else "bfloat16"
        node = graph.add("TestRealFlux", dtype=dtype, **size)[0]
        model, data, captions = [node, 0], [node, 1], [node, 2]
        drawn = str(graph.add("TestSampled", model=model, latents=data, conditioning=captions)[0])
        for name in ("load and sample", "sample again"):
            timed(name)
        source = graph.add("RolloutFromComfyModel", model=model)
        encoded = graph.add("RolloutDatasetFromLatents", model=source, latents=data, conditioning=captions)
        run = graph.add(
            "RolloutInitTraining", model=source, data=encoded, steps=100, batch_size=1, memory="auto",
            lora=graph.add("RolloutLoRASettings", rank=16, alpha=16.0), gradient_checkpointing=True,
            optimizer=graph.add("RolloutOptimizerSettings", learning_rate=1e-4),
        )  # fmt: skip
        told: dict[str, Any] = {}
        timed("begin")
        for name, steps in (("1 step", 1), ("4 steps", 4)):
            done = graph.add("RolloutTrainSteps", run=run, steps=steps)
            run = done[:2]
            text = str(graph.add("PreviewAny", source=[done[0], 2])[0])
            told = timed(name)[text]
        timed("sample after training")
        device = look(comfyui)
    del taken
    first, again, *_, after = sampled.values()
    # Where the host itself does not sample the same bits twice, as with weights that come and go, only so near.
    same = after == again if first == again else abs(after[1] / again[1] - 1) < NEAR
    check.tell("the MODEL samples after training as before", same, sampled=sampled)
    check.tell("it was trained", True, seconds=seconds, told=told["text"][0], **device)


def all_but(size: int) -> Any:
    """What takes all of the GPU's memory but so many bytes, as long as it lives."""
    import torch

    free, _total = torch.cuda.mem_get_info()
    return torch.empty(free - size, dtype=torch.uint8, device="cuda")


# --- graphs -------------------------------------------------------------------------------------------


def flow(comfyui: ComfyUI, family: str, out: Path, keep: bool = True, seed: int = 5) -> dict[str, Any]:
    """Sample, train with rollouts, sample; train the same with recomputation; sample with the LoRA.

    Args:
        keep: False keeps the host from leaving weights on the device between two uses.
        seed: of the training.
    """
    graph = PromptBuilder()
    model = graph.add("TestTinyModel", family=family, dtype="float32 everywhere")
    model = model if keep else graph.add("TestKeepNothing", model=model)
    data = graph.add("TestTinyData", family=family, n=4, side=8, ragged=False)
    first = sampled(graph, model, data)
    before = execute(comfyui, graph)
    plain = training(graph, model, data, out.name, seed, recomputed=False)
    recomputed = training(graph, model, data, out.name, seed, recomputed=True)
    losses = [validation(graph, plain[run], data=plain["data"]) for run in ("begin", "run")]
    saved = [save(graph, t["run"], f"{out.name}-{i}") for i, t in enumerate((plain, recomputed))]
    after = sampled(graph, model, data)
    patched = graph.add("RolloutApplyLoRA", model=model, run=plain["run"], strength=1.0, file="")
    with_lora = sampled(graph, patched, data)
    later = execute(comfyui, graph)
    files = [later[node]["text"][0].removeprefix("saved ") for node in saved]
    runs = sorted(comfyui.base.rglob("config.json"), key=lambda path: path.stat().st_mtime)
    return {
        "before": before[first]["digest"],
        "after": later[after]["digest"],
        "left": later[after].get("left", []),
        "hooks": later[after]["hooks"][0],
        "lora": files[0],
        "recomputed": files[1],
        "norm": later[with_lora]["norm"][0],
        "loss": [float(later[node]["text"][0].split(": ")[1]) for node in losses],
        "fingerprint": json.loads(runs[-1].read_text())["model"]["fingerprint"],
    }


def training(
    graph: PromptBuilder, model: Link, data: Link, name: str, seed: int, recomputed: bool
) -> dict[str, Link]:
    """Nodes that train with rollouts."""
    source = graph.add("RolloutFromComfyModel", model=model)
    captions = [data[0], 1]
    encoded = graph.add("RolloutDatasetFromLatents", model=source, latents=data, conditioning=captions)
    rollouts = graph.add(
        "RolloutScheduledSampling", max_step_offset=3, probability=0.7, sampler="unipc", target="residual",
        reflexflow=graph.add("RolloutReflexFlow", beta1=0.1),
    )  # fmt: skip
    begin = graph.add(
        "RolloutInitTraining", model=source, data=encoded, steps=100, batch_size=4, seed=seed, run_name=name,
        lora=graph.add("RolloutLoRASettings", rank=4, alpha=4.0), gradient_checkpointing=recomputed,
        optimizer=graph.add("RolloutOptimizerSettings", learning_rate=0.005), scheduled_sampling=rollouts,
    )  # fmt: skip
    return {"data": encoded, "begin": begin, "run": graph.add("RolloutTrainSteps", run=begin, steps=STEPS)}


def sampled(graph: PromptBuilder, model: Link, data: Link) -> str:
    """The node that samples a MODEL."""
    return str(graph.add("TestSampled", model=model, latents=data, conditioning=[data[0], 1])[0])


def validation(graph: PromptBuilder, run: Link, data: Link) -> str:
    """The node that shows a run's loss."""
    node, loss = graph.add("RolloutValidate", run=run, data=data)
    graph.add("PreviewAny", source=[node, loss])
    return str(node)


def save(graph: PromptBuilder, run: Link, name: str) -> str:
    """The node that saves a run's LoRA."""
    return str(graph.add("RolloutSaveLoRA", run=run, filename=f"check/{name}")[0])


def execute(comfyui: ComfyUI, graph: PromptBuilder) -> dict[str, Any]:
    """Run a graph with its widgets' defaults; what its nodes show."""
    info = comfyui.object_info()
    for node in graph.prompt.values():
        inputs = info[node["class_type"]]["input"]
        for name, spec in (inputs.get("required", {}) | inputs.get("optional", {})).items():
            if len(spec) > 1 and "default" in spec[1]:
                node["inputs"].setdefault(name, spec[1]["default"])
    outputs: dict[str, Any] = comfyui.queue(graph.prompt, 200)["outputs"]
    return outputs


def look(comfyui: ComfyUI) -> dict[str, Any]:
    """Where the host computes, and the bytes that lie there."""
    graph = PromptBuilder()
    node, _ = graph.add("TestDevice")
    facts: dict[str, Any] = execute(comfyui, graph)[node]["facts"][0]
    return facts


# --- beside -------------------------------------------------------------------------------------------


@contextmanager
def host(check: Check, arguments: tuple[str, ...]) -> Iterator[ComfyUI]:
    """A running ComfyUI with its own base directory; the end of what it printed goes to ``hosts.log``."""
    installation = find_installation()
    if installation is None:
        raise RuntimeError("COMFYUI_PATH must name a ComfyUI 0.33.0; see docs/gpu.md")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"  # float32 on the card as on the CPU
    base = Path(tempfile.mkdtemp(prefix="base-", dir=check.work))
    front = ["--front-end-root", str(front_end(check.work))]
    try:
        with running(installation, base, front, [NODES_FOR_TESTS], arguments) as comfyui:
            yield comfyui
    finally:
        printed = (base / "comfyui.log").read_text(errors="replace").splitlines()
        with (check.results.parent / "hosts.log").open("a") as log:
            log.write("\n".join(["", f"=== {check.part}", *printed[-LOGGED:], ""]))


def awaited(file: Path, seconds: float = 120) -> dict[str, Any]:
    """What the reference writes, which runs beside."""
    end = time.monotonic() + seconds
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.2)
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def front_end(work: Path) -> Path:
    """A front end of one empty page: the real one is too large to be carried, and nobody looks."""
    folder = work / "front-end"
    folder.mkdir(exist_ok=True)
    (folder / "index.html").write_text("<!doctype html><title>none</title>")
    return folder


def families(check: Check) -> tuple[str, ...]:
    """Those to run."""
    return FAMILIES[:1] if check.toy else FAMILIES


def distance(a: str, b: str) -> float:
    """Norm of the difference of two LoRA files, over the norm of the second."""
    from safetensors.torch import load_file

    one, other = load_file(a), load_file(b)
    if one.keys() != other.keys():
        return float("inf")
    square = sum(float((one[k].double() - other[k].double()).square().sum()) for k in one)
    norm = sum(float(t.double().square().sum()) for t in other.values())
    return float((square / norm) ** 0.5)
