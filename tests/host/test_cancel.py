"""Cancelling a training in a real ComfyUI keeps it, and Resume Training goes on as if nothing had been."""

from __future__ import annotations

import re
from pathlib import Path

from comfyui_process import ComfyUI
from prompt_builder import Link, PromptBuilder
from safetensors.torch import load_file

STEPS = 40
STOPPED = re.compile(r"stopped at step (\d+); saved (.*stopped-0001.*)")


def add_data(graph: PromptBuilder) -> dict[str, Link]:
    """The demo model and its data."""
    model = graph.add("RolloutLoadDiffusers")
    dataset = graph.add("RolloutDatasetFromFolder")
    return {"model": model, "data": graph.add("RolloutEncodeDataset", model=model, dataset=dataset)}


def training(host: ComfyUI, run_name: str) -> tuple[PromptBuilder, Link]:
    """A training with rollouts, ReflexFlow, caption dropout and a moving average: all that has a state."""
    graph = PromptBuilder(host.object_info())
    rollouts = graph.add(
        "RolloutScheduledSampling",
        max_step_offset=3,
        probability=0.5,
        reflexflow=graph.add("RolloutReflexFlow"),
    )
    own = {"steps": STEPS, "batch_size": 4, "caption_dropout": 0.1, "ema_decay": 0.9, "run_name": run_name}
    run = graph.add("RolloutTrainLoRA", scheduled_sampling=rollouts, **own, **add_data(graph))
    return graph, run


def saved_lora(host: ComfyUI, graph: PromptBuilder, run: Link, name: str) -> Path:
    """Run a graph with a file at its end."""
    node, _ = graph.add("RolloutSaveLoRA", run=run, filename=name)
    (text,) = host.queue(graph.prompt, timeout=240)["outputs"][node]["text"]
    return Path(text.removeprefix("saved "))


def test_a_cancelled_run_is_saved_and_resumes_to_the_lora_of_an_uninterrupted_one(comfyui):
    graph, run = training(comfyui, "stopped")
    save, _ = graph.add("RolloutSaveLoRA", run=run, filename="stopped")
    with comfyui.events() as events:
        prompt_id = comfyui.submit(graph.prompt)
        assert events.wait_for(
            lambda seen: any(
                (d["prompt_id"], d["node"]) == (prompt_id, run[0]) and d["value"] >= 10
                for d in seen.of_type("progress")  # some of a graph before may still be on their way
            ),
            120,
        )
        comfyui.interrupt()
        entry = comfyui.wait(prompt_id)
    messages = dict(entry["status"]["messages"])
    assert messages["execution_interrupted"]["node_id"] == run[0]
    assert save not in entry["outputs"]  # no file is written of a run that the user stopped

    ((step, place),) = STOPPED.findall(comfyui.log())
    print(f"stopped at step {step} of {STEPS}")
    assert 10 <= int(step) < STEPS
    assert Path(place).is_file()
    assert Path(place).parent == comfyui.base / "output" / "rollout_trainer" / "runs" / "stopped-0001"

    graph = PromptBuilder(comfyui.object_info())
    reopened = graph.add(
        "RolloutResumeTraining", folder="rollout_trainer/runs/stopped-0001", **add_data(graph)
    )
    rest = graph.add("RolloutTrainSteps", run=reopened, steps=STEPS - int(step))
    resumed = load_file(saved_lora(comfyui, graph, rest, "resumed"))
    whole = load_file(saved_lora(comfyui, *training(comfyui, "whole"), "whole"))
    assert whole.keys() == resumed.keys()
    assert max(float(t.abs().max()) for t in whole.values()) > 0.001
    difference = max(float((whole[name] - resumed[name]).abs().max()) for name in whole)
    print(f"resumed against uninterrupted: largest difference {difference:.1e}")
    assert difference == 0
