"""Scheduled-sampling settings: options, exchange with config.json, the ramp."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout_trainer.training.checks import from_plain, to_plain
from rollout_trainer.training.objective.config import ReflexFlowConfig, RolloutConfig
from rollout_trainer.training.trainer.config import TrainConfig

configs = st.builds(
    RolloutConfig,
    max_step_offset=st.integers(0, 10),
    probability=st.floats(0, 1),
    ramp_steps=st.integers(0, 100),
    prob_start=st.floats(0, 1),
    prob_end=st.floats(0, 1),
    start_step=st.integers(0, 100),
    ramp_shape=st.sampled_from(["linear", "cosine"]),
    sampler=st.sampled_from(["unipc", "euler", "dpm", "rk4"]),
    order=st.integers(1, 3),
    strategy=st.sampled_from(["uniform", "biased_early", "biased_late"]),
    steps_per_trajectory=st.integers(10, 1000),
    target=st.sampled_from(["residual", "clean", "corrective"]),
    reuse=st.integers(1, 5),
    reflexflow=st.builds(
        ReflexFlowConfig,
        enabled=st.sampled_from(["auto", "on", "off"]),
        alpha=st.floats(0, 10),
        beta1=st.floats(0, 10),
        fc_norm=st.sampled_from(["mean", "l1"]),
    ),
)


def test_the_seed_document_loads_as_it_stands():
    config = RolloutConfig.from_config_json(
        {
            "scheduled_sampling_max_step_offset": 10,
            "scheduled_sampling_probability": 1.0,
            "scheduled_sampling_sampler": "unipc",
            "learning_rate": 1e-4,
        }
    )
    assert (config.max_step_offset, config.probability, config.sampler) == (10, 1.0, "unipc")
    assert (config.steps_per_trajectory, config.target) == (1000, "clean")  # what such a file meant at home
    assert config.reflexflow.enabled == "auto"
    assert config.reflexflow.beta1 == 10.0


@given(configs)
def test_config_json_round_trip_is_exact(config):
    assert RolloutConfig.from_config_json(json.loads(json.dumps(config.to_config_json()))) == config


@given(configs)
def test_plain_round_trip_is_exact(config):
    whole = TrainConfig(rollout=config)
    assert from_plain(TrainConfig, json.loads(json.dumps(to_plain(whole)))) == whole


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"scheduled_sampling_max_offset": 3}, "scheduled_sampling_max_offset"),
        ({"scheduled_sampling_probability": "0.5"}, "scheduled_sampling_probability must be of type float"),
        ({"scheduled_sampling_probability": 1.5}, "probability must be from 0 to 1, got 1.5"),
        ({"scheduled_sampling_max_step_offset": 2.5}, "max_step_offset must be of type int, got 2.5"),
        ({"scheduled_sampling_max_step_offset": True}, "must be of type int, got True"),
        ({"scheduled_sampling_sampler": "heun"}, "sampler must be one of"),
        ({"scheduled_sampling_reflexflow": "yes"}, "reflexflow must be true, false or null"),
        ({"scheduled_sampling_reflexflow_gamma": 1}, "reflexflow_gamma"),
        ({"scheduled_sampling_reuse": 2, "scheduled_sampling_target": "solver_error"}, "reuse must be 1"),
        ({"scheduled_sampling_reuse": 2, "scheduled_sampling_target": "mixflow"}, "reuse must be 1"),
        ({"scheduled_sampling_guidance": 2}, "guidance must be 1 with the target clean"),
        (
            {"scheduled_sampling_target": "mixflow", "scheduled_sampling_reflexflow": True},
            "reflexflow must be auto or off with the target mixflow",
        ),
    ],
)
def test_bad_json_is_one_clear_line(config, words):
    with pytest.raises(ValueError, match=r".") as error:
        RolloutConfig.from_config_json(config)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_nan_is_out_of_range():
    with pytest.raises(ValueError, match="probability must be from 0 to 1, got nan"):
        RolloutConfig(probability=float("nan"))


def test_ramp_runs_upwards_from_zero():
    """SimpleTuner's ramp took a start of 0.0 for 'not given' and ran downwards."""
    ramp = RolloutConfig(
        max_step_offset=5, probability=0.9, ramp_steps=10, prob_start=0.0, prob_end=0.5, start_step=4
    )
    assert [ramp.probability_at(s) for s in (0, 4, 9, 14, 1000)] == [0.0, 0.0, 0.25, 0.5, 0.5]
    cosine = RolloutConfig(max_step_offset=5, ramp_steps=10, ramp_shape="cosine")
    values = [cosine.probability_at(s) for s in range(11)]
    assert values == sorted(values)
    assert values[0] == 0.0
    assert values[5] == pytest.approx(0.25)
    assert values[1] < 0.05  # slow at the start
    assert values[10] == 0.5


def test_without_a_ramp_rollouts_begin_at_start_step():
    config = RolloutConfig(max_step_offset=5, probability=0.3, start_step=7)
    assert [config.probability_at(s) for s in (0, 6, 7, 100)] == [0.0, 0.0, 0.3, 0.3]


def test_reflexflow_auto_means_flow_models():
    assert ReflexFlowConfig("auto").active("flow")
    assert not ReflexFlowConfig("auto").active("epsilon")
    assert not ReflexFlowConfig("off").active("flow")
    with pytest.raises(ValueError, match="reflexflow must be auto or off for a model that predicts epsilon"):
        ReflexFlowConfig("on").active("epsilon")
