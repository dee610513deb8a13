"""Training MODELs of many families in a real ComfyUI: tiny networks with random weights, data of random numbers.

For each: it trains with rollouts and its validation loss falls, its LoRA loads in the stock loader and acts as what was
trained, and the MODEL samples the same bits after as before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_process import ComfyUI, HostError
from PIL import Image
from prompt_builder import Link, PromptBuilder
from safetensors.torch import load_file

FLOW = ("sd3", "flux", "hunyuan_video", "wan")
FAMILIES = (*FLOW, "cogvideox", "sd15")
MODEL_FILE = "tiny_sd3.safetensors"


@dataclass
class Host:
    """A host with a helper that fills in what a graph leaves at its default."""

    comfyui: ComfyUI
    info: dict[str, Any]

    def run(self, graph: PromptBuilder, timeout: float = 120.0) -> dict[str, Any]:
        """Execute a graph and return what its nodes show."""
        outputs: dict[str, Any] = self.comfyui.queue(self.filled(graph), timeout)["outputs"]
        return outputs

    def filled(self, graph: PromptBuilder) -> dict[str, Any]:
        """The graph with the widgets' defaults."""
        for node in graph.prompt.values():
            inputs = self.info[node["class_type"]]["input"]
            for name, spec in (inputs.get("required", {}) | inputs.get("optional", {})).items():
                if len(spec) > 1 and "default" in spec[1]:
                    node["inputs"].setdefault(name, spec[1]["default"])
        return graph.prompt

    def has(self, family: str) -> bool:
        """Whether this version knows the family."""
        try:
            self.run(saving(family))
        except HostError as err:
            if "No module named" in str(err):
                return False
            raise
        return True


@pytest.fixture(scope="session")
def host(comfyui: ComfyUI) -> Host:
    """The host of the session."""
    return Host(comfyui, comfyui.object_info())


def saving(family: str) -> PromptBuilder:
    """A graph that writes a family's file."""
    graph = PromptBuilder()
    graph.add("TestSaveTinyModel", family=family)
    return graph


@dataclass
class Training:
    """The nodes of a graph that trains a tiny model."""

    graph: PromptBuilder
    base: Link
    """The MODEL as the user has it."""
    source: Link
    latents: Link
    data: Link
    run: Link
    """The run before its first step."""

    @property
    def captions(self) -> Link:
        """One for each latent."""
        return [self.latents[0], 1]

    def steps(self, n: int, run: Link | None = None) -> Link:
        """Train on, whether or not another node asks for the result."""
        done = self.graph.add("RolloutTrainSteps", run=run or self.run, steps=n)
        self.graph.add("PreviewAny", source=[done[0], 2])
        return done

    def sample(self) -> str:
        """Sample the MODEL, and return the node that shows it."""
        node, _ = self.graph.add(
            "TestSample", model=self.base, latents=self.latents, conditioning=self.captions
        )
        return str(node)


def training(
    family: str,
    base: Link | None = None,
    graph: PromptBuilder | None = None,
    *,
    dtype: str = "float32",
    wrapped: dict[str, Any] | None = None,
    ragged: bool = False,
    rollouts: bool = True,
    n: int = 4,
    lr: float = 0.01,
    kind: str = "lora",
    **settings: Any,
) -> Training:
    """A graph up to the start of a run."""
    graph = graph or PromptBuilder()
    base = base or graph.add("TestTinyModel", family=family, dtype=dtype)
    trained = base
    if wrapped:
        options = dict(wrapped)
        trained = graph.add(options.pop("class_type"), model=base, **options)
    source = graph.add("RolloutFromComfyModel", model=trained)
    latents = graph.add("TestTinyData", family=family, n=n, ragged=ragged)
    data = graph.add(
        "RolloutDatasetFromLatents",
        model=source,
        latents=latents,
        conditioning=[latents[0], 1],
        empty=[latents[0], 2],
    )
    options = {
        "steps": 100,
        "batch_size": 4,
        "seed": 5,
        "caption_dropout": 0.2,
        "run_name": family,
        **settings,
    }
    if rollouts:
        options["scheduled_sampling"] = graph.add(
            "RolloutScheduledSampling",
            max_step_offset=3,
            probability=0.7,
            sampler="unipc",
            target="residual",
            reflexflow=graph.add("RolloutReflexFlow", beta1=0.1),
        )
    run = graph.add(
        "RolloutInitTraining",
        model=source,
        data=data,
        lora=graph.add("RolloutLoRASettings", kind=kind, rank=4, alpha=4.0),
        optimizer=graph.add("RolloutOptimizerSettings", learning_rate=lr),
        **options,
    )
    return Training(graph, base, source, latents, data, run)


def validation(t: Training, run: Link) -> str:
    """The node that shows the validation loss of a run on its own data."""
    node, loss = t.graph.add("RolloutValidate", run=run, data=t.data)
    t.graph.add("PreviewAny", source=[node, loss])
    return str(node)


def shown_loss(outputs: dict[str, Any], node: str) -> float:
    """The loss that `RolloutValidate` shows."""
    return float(outputs[node]["text"][0].split(": ")[1])


def saved_lora(outputs: dict[str, Any], node: str) -> Path:
    """The file that `RolloutSaveLoRA` names."""
    return Path(outputs[node]["text"][0].removeprefix("saved "))


@dataclass
class Trained:
    """A family's training as it ran."""

    t: Training
    run: Link
    outputs: dict[str, Any]
    before: str
    first: str
    last: str
    saved: str
    applied: str


@pytest.fixture(scope="session", params=FAMILIES)
def trained(request: pytest.FixtureRequest, host: Host) -> tuple[str, Trained]:
    """Each family, trained for some steps."""
    family = request.param
    if not host.has(family):
        pytest.skip(f"this ComfyUI does not know {family}")
    steps = 4 if family == "sd15" else 16
    t = training(family, batch_size=2 if family == "sd15" else 4)
    before = t.sample()
    outputs = host.run(t.graph)
    run = t.steps(steps)
    first, last = validation(t, t.run), validation(t, run)
    saved, _ = t.graph.add("RolloutSaveLoRA", run=run, filename=f"tests/{family}")
    patched = t.graph.add("RolloutApplyLoRA", model=t.base, run=run, strength=1.0, file="")
    applied = compare(t, patched, run)
    after = t.sample()
    later = host.run(t.graph)
    assert outputs[before]["digest"] == later[after]["digest"], "the MODEL samples other bits than before"
    assert later[after]["left"] == ["0 hooks"]
    return family, Trained(t, run, later, before, first, last, saved, applied)


def compare(t: Training, patched: Link, run: Link) -> str:
    """The node that compares a MODEL with a run's adapter."""
    node, _ = t.graph.add(
        "TestCompare", patched=patched, base=t.base, run=run, latents=t.latents, conditioning=t.captions
    )
    return str(node)


# -- every family ----------------------------------------------------------------------------------


def test_trains_with_rollouts_and_the_loss_falls(trained: tuple[str, Trained]) -> None:
    family, done = trained
    first, last = (shown_loss(done.outputs, node) for node in (done.first, done.last))
    print(f"{family}: validation loss {first:.4f} -> {last:.4f}")
    assert 0 < last < first


def test_a_runs_lora_acts_on_a_model_as_it_was_trained(trained: tuple[str, Trained]) -> None:
    family, done = trained
    (difference,), (effect,) = (done.outputs[done.applied][k] for k in ("difference", "effect"))
    print(f"{family}: applied LoRA differs by {difference:.1e} where it changes {effect:.1e}")
    assert difference < 1e-4 * max(1, effect)
    assert effect > 100 * difference


def test_the_file_loads_in_the_stock_loader_and_acts_the_same(
    host: Host, trained: tuple[str, Trained]
) -> None:
    family, done = trained
    name = saved_lora(done.outputs, done.saved).relative_to(host.comfyui.base / "output" / "loras")
    t = done.t
    patched = t.graph.add("LoraLoaderModelOnly", model=t.base, lora_name=name.as_posix(), strength_model=1.0)
    node = compare(t, patched, done.run)
    log = len(host.comfyui.log())
    outputs = host.run(t.graph)
    assert "lora key not loaded" not in host.comfyui.log()[log:]
    (difference,), (effect,) = (outputs[node][k] for k in ("difference", "effect"))
    print(f"{family}: loaded LoRA differs by {difference:.1e} where it changes {effect:.1e}")
    assert difference < 1e-4 * max(1, effect)
    assert effect > 100 * difference


# -- what does not depend on the family --------------------------------------------------------------


def lora_after(host: Host, t: Training, run: Link, name: str) -> dict[str, torch.Tensor]:
    """The LoRA of a run, read back."""
    node, _ = t.graph.add("RolloutSaveLoRA", run=run, filename=f"tests/{name}")
    return load_file(saved_lora(host.run(t.graph), node))


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Largest difference of two LoRAs."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("family", ["sd3", "flux", "hunyuan_video"])
def test_gradient_checkpointing_trains_the_same_lora(host: Host, family: str) -> None:
    loras = []
    for on in (False, True):
        t = training(family, gradient_checkpointing=on)
        loras.append(lora_after(host, t, t.steps(4), f"{family}-{on}"))
    assert distance(*loras) == 0


def test_a_batch_runs_each_sample_once(host: Host) -> None:
    t = training(
        "sd3", wrapped={"class_type": "TestSlowModel", "seconds": 0.0}, rollouts=False, n=8, batch_size=8
    )
    t.steps(3)
    host.run(t.graph)
    # A training begins with two looks at one sample: does the network write into its inputs, does a gradient come back?
    assert model_calls(host) == [1, 1, 8, 8, 8]


def test_captions_of_different_lengths_train_in_turn_each_sample_once(host: Host) -> None:
    t = training(
        "sd3",
        wrapped={"class_type": "TestSlowModel", "seconds": 0.0},
        ragged=True,
        rollouts=False,
        n=6,
        batch_size=6,
    )
    t.steps(3)
    host.run(t.graph)
    first, second, *calls = model_calls(host)
    assert first == second == 1
    assert sum(calls) == 3 * 6
    rolled = training("sd3", ragged=True, n=6, batch_size=6)
    node = validation(rolled, rolled.steps(3))
    assert shown_loss(host.run(rolled.graph), node) > 0


def model_calls(host: Host) -> list[int]:
    """Rows of every call of the last slow model."""
    graph = PromptBuilder()
    node, _ = graph.add("TestCalls")
    calls: list[int] = host.run(graph)[node]["calls"]
    return calls


@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [
        ("float8", "off"),
        ("float8", "bf16"),
        ("scaled float8", "off"),
        ("scaled float8", "bf16"),
        ("bfloat16", "off"),
        ("float32", "bf16"),
    ],
)
def test_low_precision_trains(host: Host, dtype: str, autocast: str) -> None:
    t = training("sd3", dtype=dtype, autocast=autocast)
    before = t.sample()
    outputs = host.run(t.graph)
    run = t.steps(8)
    first, last, after = validation(t, t.run), validation(t, run), t.sample()
    later = host.run(t.graph)
    assert shown_loss(later, last) < shown_loss(later, first)
    assert outputs[before]["digest"] == later[after]["digest"]
    lora = lora_after(host, t, run, f"{dtype}-{autocast}")
    assert all(v.dtype == torch.float32 and v.isfinite().all() for v in lora.values())


@pytest.mark.parametrize("trained", ["sd3"], indirect=True)
def test_a_stock_loaders_model_trains_with_a_lora_and_a_shift_of_its_own(
    host: Host, trained: tuple[str, Trained]
) -> None:
    _, done = trained
    name = saved_lora(done.outputs, done.saved).relative_to(host.comfyui.base / "output" / "loras")
    graph = PromptBuilder()
    base = graph.add("UNETLoader", unet_name=MODEL_FILE, weight_dtype="default")
    base = graph.add("LoraLoaderModelOnly", model=base, lora_name=name.as_posix(), strength_model=0.5)
    base = graph.add("ModelSamplingSD3", model=base, shift=1.5)
    t = training("sd3", base, graph)
    before = t.sample()
    outputs = host.run(t.graph)
    run = t.steps(12)
    first, last, after = validation(t, t.run), validation(t, run), t.sample()
    later = host.run(t.graph)
    assert shown_loss(later, last) < shown_loss(later, first)
    assert outputs[before]["digest"] == later[after]["digest"]


def test_a_cancelled_run_resumes_as_if_it_had_not_stopped(host: Host) -> None:
    slow = {"class_type": "TestSlowModel", "seconds": 0.03}
    whole = training("sd3", wrapped={**slow, "seconds": 0.0}, run_name="whole")
    expected = lora_after(host, whole, whole.steps(12), "whole")

    t = training("sd3", wrapped=slow, run_name="stopped")
    before = t.sample()
    outputs = host.run(t.graph)
    log = len(host.comfyui.log())
    node, _ = t.steps(12)
    with host.comfyui.events() as events:
        prompt = host.comfyui.submit(host.filled(t.graph))
        assert events.wait_for(
            lambda seen: any(d["node"] == node and d["value"] >= 3 for d in seen.of_type("progress"))
        )
        host.comfyui.interrupt()
        entry = host.comfyui.wait(prompt)
    assert "execution_interrupted" in [name for name, _ in entry["status"]["messages"]]
    stopped = re.search(r"stopped at step (\d+); saved (\S+)", host.comfyui.log()[log:])
    assert stopped
    step, state = int(stopped[1]), Path(stopped[2])
    assert 3 <= step < 12

    t = training("sd3", wrapped={**slow, "seconds": 0.0}, run_name="stopped")
    after = t.sample()
    resumed = t.graph.add(
        "RolloutResumeTraining", model=t.source, data=t.data, folder=str(state.parent), step=step
    )
    lora = lora_after(host, t, t.steps(12 - step, resumed), "resumed")
    assert distance(lora, expected) == 0
    assert host.run(t.graph)[after]["digest"] == outputs[before]["digest"]


def test_an_error_leaves_the_model_as_it_was(host: Host) -> None:
    t = training("flux", wrapped={"class_type": "TestFaultyModel", "after": 9})
    before = t.sample()
    outputs = host.run(t.graph)
    t.steps(12)
    with pytest.raises(HostError, match="a fault on purpose"):
        host.run(t.graph)
    t = training("flux")
    after = t.sample()
    later = host.run(t.graph)
    assert outputs[before]["digest"] == later[after]["digest"]
    assert later[after]["left"] == ["0 hooks"]


@pytest.mark.parametrize("fault", ["no memory", "no memory for a tensor"])
def test_memory_that_runs_out_is_told_in_one_true_line(fault: str, host: Host) -> None:
    """Python's MemoryError has no text, so that the window was empty; torch's names a line of its source."""
    name = f"ran-out-{fault.count(' ')}"
    t = training("sd3", wrapped={"class_type": "TestFaultyModel", "after": 20, "fault": fault}, run_name=name)
    t.steps(12)
    with pytest.raises(HostError) as failure:
        host.run(t.graph)
    line = failure.value.answer["exception_message"].strip()
    said = re.fullmatch(
        r"out of memory \(RAM\) in step (\d+); step (\d+) is saved; close other programs, .*", line
    )
    assert said, line
    step = int(said[2])
    assert int(said[1]) == step + 1
    (folder,) = (host.comfyui.base / "output" / "rollout_trainer" / "runs").glob(f"{name}-*")
    assert (folder / f"state-{step:08}.safetensors").exists()


def test_memory_that_runs_out_without_a_training_names_the_node(host: Host) -> None:
    t = training("sd3", wrapped={"class_type": "TestFaultyModel", "after": 1, "fault": "no memory"})
    how = t.graph.add("RolloutScheduledSampling", max_step_offset=2)
    shown = t.graph.add("RolloutPreview", model=t.source, data=t.data, scheduled_sampling=how)
    t.graph.add("PreviewImage", images=shown)
    with pytest.raises(HostError) as failure:
        host.run(t.graph)
    line = failure.value.answer["exception_message"].strip()
    assert line.startswith("out of memory (RAM) in Preview Rollout; close other programs"), line


@pytest.mark.parametrize("kind", ["dora", "loha", "lokr"])
def test_other_adapters_act_in_the_stock_loader_as_they_were_trained(host: Host, kind: str) -> None:
    t = training("sd3", kind=kind)
    run = t.steps(6)
    saved, _ = t.graph.add("RolloutSaveLoRA", run=run, filename=f"tests/{kind}")
    name = saved_lora(host.run(t.graph), saved).relative_to(host.comfyui.base / "output" / "loras")
    patched = t.graph.add("LoraLoaderModelOnly", model=t.base, lora_name=name.as_posix(), strength_model=1.0)
    node = compare(t, patched, run)
    log = len(host.comfyui.log())
    outputs = host.run(t.graph)
    assert "lora key not loaded" not in host.comfyui.log()[log:]
    (difference,), (effect,) = (outputs[node][k] for k in ("difference", "effect"))
    print(f"{kind}: loaded file differs by {difference:.1e} where it changes {effect:.1e}")
    assert difference < 1e-4 * max(1, effect)
    assert effect > 100 * difference


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_with_clip_and_vae_folders_are_encoded_and_pictures_drawn(host: Host, family: str) -> None:
    """Folder -> encode -> train -> preview -> sample, with captions of different lengths."""
    graph = PromptBuilder()
    base = graph.add("TestTinyModel", family=family, dtype="float32")
    source = graph.add(
        "RolloutFromComfyModel",
        model=base,
        clip=graph.add("TestTinyClip", family=family),
        vae=graph.add("TestTinyVae", channels=16),
    )
    folder = graph.add("RolloutDatasetFromFolder", folder=str(pictures(host)))
    data = graph.add("RolloutEncodeDataset", model=source, dataset=folder, resolution=64)
    rollouts = graph.add("RolloutScheduledSampling", max_step_offset=3, probability=1.0)
    done = graph.add(
        "RolloutTrainLoRA",
        model=source,
        data=data,
        steps=3,
        batch_size=3,
        caption_dropout=0.3,
        scheduled_sampling=rollouts,
        lora=graph.add("RolloutLoRASettings", rank=2, alpha=2.0),
    )
    model = [done[0], 1]
    images = graph.add(
        "RolloutSample", model=model, prompts="one\nmore of them", width=64, height=64, steps=3
    )
    drawn, _ = graph.add("PreviewImage", images=images)
    strip = graph.add("RolloutPreview", model=model, data=data, scheduled_sampling=rollouts)
    film, _ = graph.add("PreviewImage", images=strip)
    outputs = host.run(graph)
    assert len(outputs[drawn]["images"]) == 2
    assert len(outputs[film]["images"]) == 2


def test_guidance_goes_with_the_captions(host: Host) -> None:
    """Flux is given 3.5 by the host where a caption says nothing."""
    graph = PromptBuilder()
    parts = {
        "model": graph.add("TestTinyModel", family="flux", dtype="float32"),
        "clip": graph.add("TestTinyClip", family="flux"),
        "vae": graph.add("TestTinyVae", channels=16),
    }
    shown = {}
    for guidance in (0.0, 3.5, 1.0):
        source = graph.add("RolloutFromComfyModel", guidance=guidance, **parts)
        folder = graph.add("RolloutDatasetFromFolder", folder=str(pictures(host)))
        data = graph.add("RolloutEncodeDataset", model=source, dataset=folder, resolution=64)
        run = graph.add("RolloutInitTraining", model=source, data=data)
        shown[guidance], loss = graph.add("RolloutValidate", run=run, data=data)
        graph.add("PreviewAny", source=[shown[guidance], loss])
    outputs = host.run(graph)
    losses = {guidance: shown_loss(outputs, node) for guidance, node in shown.items()}
    print(f"flux, validation loss by guidance: {losses}")
    assert losses[0.0] == losses[3.5] != losses[1.0]


def pictures(host: Host) -> Path:
    """A folder of pictures with captions of one to three words."""
    folder = host.comfyui.base / "input" / "tiny_pictures"
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(3):
        Image.new("RGB", (64, 64), (40 * i, 90, 200)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(" ".join(["word"] * (i + 1)))
    return folder


def test_captions_that_do_not_match_are_one_clear_line(host: Host) -> None:
    graph = PromptBuilder()
    source = graph.add(
        "RolloutFromComfyModel", model=graph.add("TestTinyModel", family="sd3", dtype="float32")
    )
    five, three = (graph.add("TestTinyData", family="sd3", n=n, ragged=False) for n in (5, 3))
    data = graph.add("RolloutDatasetFromLatents", model=source, latents=five, conditioning=[three[0], 1])
    graph.add("PreviewAny", source=[data[0], 1])
    with pytest.raises(HostError, match="one for each of 5 latents, got 3 captions"):
        host.run(graph)


def test_one_caption_serves_all_and_sizes_are_buckets(host: Host) -> None:
    graph = PromptBuilder()
    source = graph.add(
        "RolloutFromComfyModel", model=graph.add("TestTinyModel", family="sd3", dtype="float32")
    )
    one = graph.add("TestTinyData", family="sd3", n=1, ragged=False)
    many = graph.add("TestTinyData", family="sd3", n=5, ragged=False, side=12)
    listed = graph.add("RebatchLatents", latents=many, batch_size=2)  # a list of batches of 2, 2 and 1
    for latents in (many, listed):
        data = graph.add("RolloutDatasetFromLatents", model=source, latents=latents, conditioning=[one[0], 1])
        node, _ = graph.add("PreviewAny", source=[data[0], 1])
        (text,) = host.run(graph)[node]["text"]
        assert text == "5 latents 16x12x12, 5 samples an epoch"


def test_without_an_empty_caption_dropout_is_refused(host: Host) -> None:
    t = training("sd3")
    data = t.graph.prompt[t.data[0]]["inputs"]
    del data["empty"]
    t.steps(1)
    with pytest.raises(HostError, match="caption_dropout must be 0"):
        host.run(t.graph)


def test_without_a_vae_the_error_says_what_to_wire(host: Host) -> None:
    t = training("sd3")
    preview = t.graph.add("RolloutPreview", model=t.source, data=t.data, scheduled_sampling=t.graph.add(
        "RolloutScheduledSampling", max_step_offset=3, probability=1.0))  # fmt: skip
    t.graph.add("PreviewImage", images=preview)
    with pytest.raises(HostError, match="vae must be wired"):
        host.run(t.graph)


@pytest.fixture
def small_memory(host: Host) -> Iterator[None]:
    """A device that has no room but for a model's weights."""

    def believe(share: float) -> None:
        graph = PromptBuilder()
        graph.add("TestSmallMemory", share=share)
        host.run(graph)

    believe(1.0)
    yield
    believe(0.0)


@pytest.mark.usefixtures("small_memory")
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_model_needs_is_planned_before_it_trains(family: str, host: Host) -> None:
    if not host.has(family):
        pytest.skip(f"this ComfyUI does not know {family}")
    t = training(family, batch_size=2, memory="auto")
    shown, _ = t.graph.add("PreviewAny", source=[t.steps(1)[0], 2])
    start, _ = t.graph.add("PreviewAny", source=[t.run[0], 2])
    outputs = host.run(t.graph, 300)
    assert re.search(
        r"needs about [\d.]+ GB of [\d.]+; the least is [\d.]+ GB, with ", outputs[str(start)]["text"][0]
    )
    assert "loss" in outputs[str(shown)]["text"][0]
