"""Widgets are what workflow files have stored, and what the config classes declare."""

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_type_hints

import pytest
from record_schemas import schemas

from rollout_trainer.host import io
from rollout_trainer.nodes import NODES, settings, train
from rollout_trainer.nodes.widgets import NO_LIMIT, config_of, widget
from rollout_trainer.training.checks import check_settings, declared, from_plain, setting, to_plain
from rollout_trainer.training.lora.adapter import LoRAConfig
from rollout_trainer.training.objective.config import ReflexFlowConfig, RolloutConfig
from rollout_trainer.training.objective.losses import LossConfig
from rollout_trainer.training.objective.timesteps import TimestepConfig
from rollout_trainer.training.trainer.config import TrainConfig
from rollout_trainer.training.trainer.optim import OptimizerConfig

SAVED = json.loads(Path(__file__).with_name("schemas_0.1.json").read_text(encoding="utf-8"))
CONFIGS = {
    "RolloutLoRASettings": (LoRAConfig, settings.LORA),
    "RolloutOptimizerSettings": (OptimizerConfig, settings.OPTIMIZER),
    "RolloutTimestepSettings": (TimestepConfig, settings.TIMESTEPS),
    "RolloutLossSettings": (LossConfig, settings.LOSS),
    "RolloutReflexFlow": (ReflexFlowConfig, settings.REFLEXFLOW),
    "RolloutScheduledSampling": (RolloutConfig, settings.ROLLOUT | settings.METHODS | settings.PRESERVE),
    "RolloutTrainLoRA": (TrainConfig, train.TRAIN | train.WATCH | train.MEMORY | train.HOLD_OUT),
    "RolloutInitTraining": (TrainConfig, train.TRAIN | train.WATCH | train.MEMORY | train.HOLD_OUT),
}

UNLIMITED = "the config has no highest value"
CONFIG = "the config takes it"
TYPED = "its whole range can be typed in; by its step, the front end would round to fewer digits"
CHANGED = {
    ("RolloutLoRASettings", "alpha"): {"min": CONFIG, "max": UNLIMITED},
    ("RolloutOptimizerSettings", "learning_rate"): {"min": CONFIG, "max": CONFIG, "round": TYPED},
    ("RolloutOptimizerSettings", "warmup_steps"): {"max": UNLIMITED},
    ("RolloutOptimizerSettings", "weight_decay"): {"max": UNLIMITED},
    ("RolloutOptimizerSettings", "beta1"): {"round": TYPED},
    ("RolloutOptimizerSettings", "beta2"): {"round": TYPED},
    ("RolloutOptimizerSettings", "grad_clip"): {"max": UNLIMITED},
    ("RolloutTimestepSettings", "std"): {"min": CONFIG, "round": TYPED},
    ("RolloutTimestepSettings", "shift"): {"min": CONFIG, "round": TYPED},
    ("RolloutLossSettings", "huber_delta"): {"min": CONFIG, "max": UNLIMITED, "round": TYPED},
    ("RolloutLossSettings", "min_snr_gamma"): {"max": UNLIMITED},
    **{("RolloutReflexFlow", name): {"max": UNLIMITED} for name in ("alpha", "beta1", "beta2")},
    **{("RolloutScheduledSampling", name): {"max": UNLIMITED} for name in ("ramp_steps", "start_step")},
    **{
        (node, name): {"max": UNLIMITED}
        for node in ("RolloutTrainLoRA", "RolloutInitTraining")
        for name in (
            *("steps", "batch_size", "accumulation", "save_every", "keep", "validate_every", "preview_every"),
        )
    },
    **{("RolloutTrainSteps", name): {"max": UNLIMITED} for name in ("steps", "until_step")},
    ("RolloutTrainSteps", "learning_rate"): {"max": CONFIG, "round": TYPED},
    ("RolloutResumeTraining", "step"): {"max": UNLIMITED},
}
"""Ranges of widgets that are others than in 0.1, each with its reason. They may grow, never shrink."""

RANGE = ("min", "max", "step", "round")


def inputs(recorded):
    return {(node, own["id"]): own for node in recorded for own in recorded[node]["inputs"]}


def test_saved_workflows_find_every_node_input_and_output_at_its_place():
    now = schemas()
    for node, was in SAVED.items():
        is_now = now[node]
        assert [own["id"] for own in is_now["inputs"]][: len(was["inputs"])] == [
            o["id"] for o in was["inputs"]
        ]
        assert is_now["outputs"][: len(was["outputs"])] == was["outputs"], node
        assert all(own["optional"] for own in is_now["inputs"][len(was["inputs"]) :]), node


@pytest.mark.parametrize("place", inputs(SAVED), ids=".".join)
def test_an_input_is_what_it_was(place):
    was, now = inputs(SAVED)[place], inputs(schemas())[place]
    ranges = {key for key in RANGE if was.get(key) != now.get(key)}
    assert ranges == CHANGED.get(place, {}).keys()
    assert now.get("min", 0) <= was.get("min", 0)
    assert now.get("max", 0) >= was.get("max", 0)
    options = was.pop("options", []), now.pop("options", [])
    assert options[1][: len(options[0])] == options[0]
    assert was.pop("type") in now.pop("type").split(",")  # it may take more
    assert {k: v for k, v in now.items() if k not in RANGE} == {
        k: v for k, v in was.items() if k not in RANGE
    }


@pytest.mark.parametrize("node", CONFIGS)
def test_a_widget_has_the_range_and_the_help_of_its_field(node):
    kind, names = CONFIGS[node]
    (schema,) = (s for s in (cls.define_schema() for cls in NODES) if s.node_id == node)
    found = {own.id: own for own in schema.inputs}
    for id, field in names.items():
        said, own = declared(kind)[field], found[id]
        assert own.tooltip == said.help
        if isinstance(own, (io.Int.Input, io.Float.Input)):
            assert own.min == said.low
            assert own.max == (NO_LIMIT if math.isinf(said.high) else said.high)
        if said.choices:
            assert own.options == list(said.choices)


@pytest.mark.parametrize("node", CONFIGS)
def test_the_widgets_of_a_node_and_their_defaults_make_its_config(node):
    kind, names = CONFIGS[node]
    (schema,) = (s for s in (cls.define_schema() for cls in NODES) if s.node_id == node)
    values = {own.id: own.default for own in schema.inputs if own.id in names}
    assert list(values) == list(names)
    made = config_of(kind, names, values)
    changed = {"max_step_offset": 5, "probability": 0.5} if kind is RolloutConfig else {}
    assert made == kind(**changed)
    assert from_plain(kind, to_plain(made)) == made


@pytest.mark.parametrize("kind", dict.fromkeys(kind for kind, _ in CONFIGS.values()))
def test_both_ends_of_every_range_are_valid_and_nothing_beyond(kind):
    hints, free = get_type_hints(kind), {"steps_per_trajectory": 10000} if kind is RolloutConfig else {}
    for name, said in declared(kind).items():
        if hints[name] not in (int, float):
            continue
        for end, beyond in ((said.low, -1e-6), (said.high, 1e-6)):
            value = hints[name](end) if math.isfinite(end) else 1e12
            if {"low": 1, "high": 0}.get(name) == value and kind is TimestepConfig:
                continue  # low must be below high
            more = {} if name in free else free
            if name != "steps_per_trajectory":
                assert getattr(kind(**{name: value} | more), name) == value
            if math.isfinite(end):
                with pytest.raises(ValueError, match=r"must be (from|at least) .*, got"):
                    kind(**{name: end + max(abs(end), 1) * beyond} | more)


def test_every_plain_field_of_a_config_is_declared():
    for kind in {kind for kind, _ in CONFIGS.values()}:
        nested = {"lora", "optimizer", "timesteps", "loss", "rollout", "reflexflow"}
        assert {f.name for f in fields(kind)} - declared(kind).keys() <= nested


def test_a_field_that_is_no_choice_switch_or_number_has_no_widget():
    with pytest.raises(TypeError, match=r"LoRAConfig.targets must be a choice, a switch or a number"):
        widget(LoRAConfig, "targets")


def test_what_is_no_number_is_refused_where_one_belongs():
    with pytest.raises(ValueError, match="steps must be a number, got 'many'"):
        TrainConfig(steps="many")
    with pytest.raises(ValueError, match="sampler must be one of"):
        RolloutConfig(sampler=["unipc"])


def test_choices_may_grow_after_the_class_was_made():
    known = {"a": 1}

    @dataclass(frozen=True)
    class Config:
        name: str = setting("a", "Which.", choices=known)

    with pytest.raises(ValueError, match="name must be one of a, got 'b'"):
        check_settings(Config("b"))
    known["b"] = 2
    check_settings(Config("b"))
