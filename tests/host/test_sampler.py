"""RolloutSampler and RolloutSigmas in a real ComfyUI, beside our own library and the host's own samplers.

`demo_model` says how the two are compared.
"""

from __future__ import annotations

import io
import struct
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from comfyui_process import ComfyUI
from demo_model import (
    Draw,
    add_conditioning,
    add_demo,
    add_draw,
    add_latents,
    add_model,
    add_right_half,
    largest,
    model_space,
)
from PIL import Image
from prompt_builder import Link, PromptBuilder
from safetensors.torch import save_file
from torch import Tensor

SAMPLERS = ("unipc", "dpm", "euler", "rk4")
PREVIEW, JPEG = 1, 1  # in the head of the host's binary messages


def add_epsilon_model(graph: PromptBuilder, prediction: str) -> Link:
    """A random network of the shape of SD 1.5, as it comes or told that it predicts v."""
    model = graph.add("TestEpsilonModel", seed=0)
    if prediction == "epsilon":
        return model
    return graph.add("ModelSamplingDiscrete", model=model, sampling="v_prediction", zsnr=False)


def add_epsilon_draw(graph: PromptBuilder, prediction: str, sampler: Link, steps: int = 8) -> Link:
    """A draw of the epsilon model."""
    model = add_epsilon_model(graph, prediction)
    return graph.add(
        "SamplerCustom",
        model=model,
        add_noise=True,
        noise_seed=5,
        cfg=1.0,
        positive=add_conditioning(graph, "epsilon"),
        negative=add_conditioning(graph, "epsilon"),
        sampler=sampler,
        sigmas=graph.add("RolloutSigmas", model=model, steps=steps, start=1.0, end=0.0),
        latent_image=graph.add("EmptyLatentImage", width=64, height=64, batch_size=1),
    )


@pytest.fixture(scope="module", autouse=True)
def epsilon_conditioning(comfyui):
    context = torch.randn(1, 8, 768, generator=torch.Generator().manual_seed(0))
    save_file({"context": context}, comfyui.base / "input" / "epsilon.safetensors")


# -- the same numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("node", ["SamplerCustomAdvanced", "SamplerCustom"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_host_samples_what_our_library_samples(demo, sampler, node):
    draw = Draw(sampler, order=3 if sampler == "dpm" else 2)
    difference = largest(demo.there(draw, node), demo.here(draw))
    print(f"{sampler} in {node}: largest difference {difference:.1e}")
    assert difference < 1e-4


@pytest.mark.parametrize(("start", "end", "picture"), [(0.6, 0.0, True), (1.0, 0.3, False)])
def test_a_part_of_the_trajectory_is_sampled_as_by_our_library(demo, start, end, picture):
    draw = Draw(start=start, end=end, picture=picture)
    difference = largest(demo.there(draw), demo.here(draw))
    print(f"u from {start} to {end}: largest difference {difference:.1e}")
    assert difference < 1e-4


def test_a_picture_keeps_more_of_itself_the_later_the_start(demo):
    kept = [largest(demo.there(Draw(start=start, picture=True)), demo.picture) for start in (0.2, 0.9)]
    assert kept[0] < kept[1] / 2


def test_a_batch_is_sampled_as_its_rows_alone(demo):
    together = demo.there(Draw(rows=3))
    alone = torch.cat([demo.there(Draw(first=i)) for i in range(3)])
    difference = largest(together, alone)
    print(f"batch of 3 against single runs: largest difference {difference:.1e}")
    assert difference < 1e-4


@pytest.mark.parametrize("masked", [False, True])
def test_our_euler_is_the_hosts_euler(demo, masked):
    results = []
    for name in ("RolloutSampler", "KSamplerSelect"):
        graph, latent = PromptBuilder(), None
        ours = {"sampler": "euler", "order": 2}
        sampler = graph.add(name, **(ours if name == "RolloutSampler" else {"sampler_name": "euler"}))
        if masked:
            picture = add_latents(graph, Draw(picture=True))
            latent = graph.add("SetLatentNoiseMask", samples=picture, mask=add_right_half(graph))
        results.append(demo.run(add_draw(graph, Draw(), sampler=sampler, latent=latent), graph))
    difference = largest(*results)
    print(f"euler against the host's, {masked=}: largest difference {difference:.1e}")
    assert difference < 1e-5


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize(("sampler", "hosts"), [("euler", "euler"), ("dpm", "dpmpp_2m")])
def test_a_variance_exploding_model_is_sampled_as_by_the_host(demo, prediction, sampler, hosts):
    results = []
    for name, widgets in (
        ("RolloutSampler", {"sampler": sampler, "order": 2}),
        ("KSamplerSelect", {"sampler_name": hosts}),
    ):
        graph = PromptBuilder()
        drawn = add_epsilon_draw(graph, prediction, graph.add(name, **widgets))
        results.append(demo.run(drawn, graph))
    difference = largest(*results) / float(results[1].abs().max())
    print(f"{prediction}: {sampler} against the host's {hosts}: largest relative difference {difference:.1e}")
    assert difference < 1e-5


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_noise_mask_is_respected(demo, sampler):
    graph = PromptBuilder()
    picture = add_latents(graph, Draw(picture=True))
    masked = graph.add("SetLatentNoiseMask", samples=picture, mask=add_right_half(graph))
    painted = model_space(demo.run(add_draw(graph, Draw(sampler), latent=masked), graph))
    outside = largest(painted[..., :8], demo.picture[..., :8])
    inside = largest(painted[..., 8:], demo.picture[..., 8:])
    print(f"{sampler}: largest difference outside of the mask {outside:.1e}, inside {inside:.1e}")
    assert outside < 1e-5
    assert inside > 0.5


# -- noise levels ----------------------------------------------------------------------------------


def shown_sigmas(host: ComfyUI, sigmas: Link, graph: PromptBuilder) -> Tensor:
    """Run a graph and return SIGMAS as numbers, [T + 1]."""
    node, _ = graph.add("TestShowSigmas", sigmas=sigmas)
    return torch.tensor(host.queue(graph.prompt)["outputs"][node]["sigmas"], dtype=torch.float64)


def our_sigmas(
    host: ComfyUI, add: Callable[[PromptBuilder], Link], steps: int, start: float = 1.0, end: float = 0.0
) -> Tensor:
    """What RolloutSigmas gives for the model that `add` adds."""
    graph = PromptBuilder()
    sigmas = graph.add("RolloutSigmas", model=add(graph), steps=steps, start=start, end=end)
    return shown_sigmas(host, sigmas, graph)


def add_patched(graph: PromptBuilder, class_type: str, **widgets: object) -> Link:
    """The demo transformer under another of the host's noise schedules."""
    return graph.add(class_type, model=add_model(graph), **widgets)


FLUX = {"max_shift": 1.15, "base_shift": 0.5, "width": 1024, "height": 1024}
MODELS = {
    "flow, shift 3": add_model,
    "flow, shift 1": add_demo,
    "AuraFlow": lambda graph: add_patched(graph, "ModelSamplingAuraFlow", shift=1.73),
    "Flux": lambda graph: add_patched(graph, "ModelSamplingFlux", **FLUX),
    "epsilon": lambda graph: add_epsilon_model(graph, "epsilon"),
    "v": lambda graph: add_epsilon_model(graph, "v"),
    "zero terminal SNR": lambda graph: add_patched(
        graph, "ModelSamplingDiscrete", sampling="v_prediction", zsnr=True
    ),
}


def test_sigmas_of_a_flow_model_have_its_shift(demo):
    u = torch.linspace(1, 0, 11, dtype=torch.float64)
    assert largest(our_sigmas(demo.host, add_model, 10), 3 * u / (1 + 2 * u)) < 1e-7
    assert largest(our_sigmas(demo.host, add_demo, 10), u) < 1e-7
    u = torch.linspace(0.6, 0.2, 5, dtype=torch.float64)
    assert largest(our_sigmas(demo.host, add_model, 4, 0.6, 0.2), 3 * u / (1 + 2 * u)) < 1e-7


def test_sigmas_of_an_epsilon_model_are_its_table(demo):
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = (1 - betas).cumprod(0)
    table = ((1 - alphas) / alphas).sqrt()
    sigmas = our_sigmas(demo.host, MODELS["epsilon"], 1000)
    assert sigmas[-1] == 0
    assert largest(sigmas[:-1].flip(0) / table, torch.ones_like(table)) < 1e-5


@pytest.mark.parametrize("model", MODELS)
def test_sigmas_are_the_hosts_simple_ones_where_those_fall_on_training_timesteps(demo, model):
    graph = PromptBuilder()
    simple = graph.add(
        "BasicScheduler", model=MODELS[model](graph), scheduler="simple", steps=10, denoise=1.0
    )
    theirs = shown_sigmas(demo.host, simple, graph)
    difference = largest(our_sigmas(demo.host, MODELS[model], 10) / theirs[0], theirs / theirs[0])
    print(f"{model}: largest relative difference to the simple scheduler {difference:.1e}")
    assert difference < 1e-6


# -- what one sees meanwhile -----------------------------------------------------------------------


def previews(binary: list[bytes]) -> list[Image.Image]:
    """The preview pictures among binary messages."""
    heads = (struct.unpack(">II", message[:8]) for message in binary)
    return [
        Image.open(io.BytesIO(message[8:]))
        for message, head in zip(binary, heads, strict=True)
        if head == (PREVIEW, JPEG)
    ]


@pytest.mark.parametrize("sampler", ["unipc", "rk4"])
def test_every_step_is_reported_with_a_preview(demo, sampler):
    graph = PromptBuilder()
    drawn = add_draw(graph, Draw(sampler, steps=5, seed=21))
    graph.add("SaveLatent", samples=drawn, filename_prefix="tests/latent")
    with demo.host.events() as events:
        demo.host.queue(graph.prompt)
        assert events.wait_for(lambda seen: any(data["node"] is None for data in seen.of_type("executing")))
    steps = [(data["value"], data["max"]) for data in events.of_type("progress") if data["node"] == drawn[0]]
    assert steps == [(step, 5) for step in range(1, 6)]
    pictures = [np.asarray(picture.convert("RGB"), dtype=float) for picture in previews(events.binary)]
    assert len(pictures) == 5
    assert all(picture.std() > 5 for picture in pictures)
    assert np.abs(pictures[-1] - pictures[0]).max() > 20


@pytest.mark.parametrize(("sampler", "calls"), [("unipc", 5), ("dpm", 5), ("euler", 5), ("rk4", 4 * 4 + 1)])
def test_a_step_costs_as_many_model_calls_as_the_solver_says(demo, sampler, calls):
    graph = PromptBuilder()
    slow = graph.add("TestSlowModel", model=add_demo(graph), seconds=0.0)
    drawn = add_draw(graph, Draw(sampler, steps=5, seed=22, cfg=1.0), model=slow)
    graph.add("SaveLatent", samples=drawn, filename_prefix="tests/latent")
    demo.host.queue(graph.prompt)
    assert model_calls(demo.host) == [1] * calls


def test_a_cancel_does_not_wait_for_the_end_of_a_step(demo):
    graph = PromptBuilder()
    slow = graph.add("TestSlowModel", model=add_demo(graph), seconds=1.0)
    drawn = add_draw(graph, Draw("rk4", steps=3, seed=23), model=slow)
    graph.add("SaveLatent", samples=drawn, filename_prefix="tests/latent")
    with demo.host.events() as events:
        prompt_id = demo.host.submit(graph.prompt)
        assert events.wait_for(lambda seen: any(d["node"] == drawn[0] for d in seen.of_type("executing")))
        time.sleep(1.5)
        demo.host.interrupt()
        entry = demo.host.wait(prompt_id)
    assert "execution_interrupted" in [name for name, _ in entry["status"]["messages"]]
    assert len(model_calls(demo.host)) < 4  # a step of rk4 has four


def model_calls(host: ComfyUI) -> list[int]:
    """Rows of every call of the last slow model."""
    rows: list[int] = host.queue({"1": {"class_type": "TestCalls", "inputs": {}}})["outputs"]["1"]["calls"]
    return rows
