"""Stages with other settings in a real ComfyUI: a folder each, found again when the stage is queued again."""

from __future__ import annotations

from typing import Any

from comfyui_process import ComfyUI, History
from prompt_builder import PromptBuilder
from safetensors.torch import load_file
from test_cancel import add_data, saved_lora

STAGE = 4  # steps


def executed(entry: History) -> set[str]:
    """The nodes of a prompt that were not cached."""
    messages: dict[str, Any] = dict(entry["status"]["messages"])
    return set(entry["outputs"]) - set(messages["execution_cached"]["nodes"])


def test_a_stage_with_rollouts_after_a_plain_one(comfyui: ComfyUI):
    graph = PromptBuilder(comfyui.object_info())
    run = graph.add("RolloutInitTraining", batch_size=2, run_name="staged", **add_data(graph))
    plain = graph.add("RolloutTrainSteps", run=run, steps=STAGE)
    rollouts = graph.add("RolloutScheduledSampling", max_step_offset=3, probability=1.0)
    stage = graph.add(
        "RolloutTrainSteps", run=plain, steps=STAGE, learning_rate=1e-3, scheduled_sampling=rollouts
    )
    first = saved_lora(comfyui, graph, stage, "staged")
    runs = comfyui.base / "output" / "rollout_trainer" / "runs"

    def folders() -> list[str]:
        return sorted(p.name for p in runs.iterdir() if p.name.startswith("staged"))

    assert folders() == ["staged-0001", "staged-0001-0001"]
    assert executed(comfyui.queue(graph.prompt)) == set()  # queued again: cached

    graph.prompt[stage[0]]["inputs"]["until_step"] = 2 * STAGE  # the same stage in other words: it runs again
    entry = comfyui.queue(graph.prompt)
    assert stage[0] in executed(entry)
    assert plain[0] not in executed(entry)
    assert folders() == ["staged-0001", "staged-0001-0001"]
    again = saved_lora(comfyui, graph, stage, "staged-again")
    one, other = load_file(first), load_file(again)
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)

    reopened = PromptBuilder(comfyui.object_info())
    folder = "rollout_trainer/runs/staged-0001-0001"
    opened = reopened.add("RolloutResumeTraining", folder=folder, step=STAGE, **add_data(reopened))
    rest = reopened.add("RolloutTrainSteps", run=opened, steps=STAGE)
    resumed = load_file(saved_lora(comfyui, reopened, rest, "staged-resumed"))
    assert all((one[name] == resumed[name]).all() for name in one)
