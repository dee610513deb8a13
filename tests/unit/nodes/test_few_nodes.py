"""A training of few nodes: settings of the model's recipe, and a LoRA that it saves itself."""

import pytest
from safetensors import safe_open

from rollout_trainer.host.standalone.host import StandaloneHost, installed
from rollout_trainer.nodes import NODES, train
from rollout_trainer.nodes.schemas import ADVANCED
from rollout_trainer.nodes.train import RolloutTrainLoRA, new_run
from rollout_trainer.training.lora.adapter import LoRAConfig
from rollout_trainer.training.models.source import LoadedModel
from rollout_trainer.training.objective.losses import LossConfig
from rollout_trainer.training.objective.timesteps import TimestepConfig
from rollout_trainer.training.pictures.sampling import Prompts
from rollout_trainer.training.trainer.optim import OptimizerConfig
from rollout_trainer.training.trainer.recipes import RECIPES, fitting


@pytest.fixture
def asked(make_data, toy_source, tmp_path, monkeypatch):
    """``asked(model class, ...)``: the config of the run, and what is told of it."""

    def run(model, **inputs):
        monkeypatch.setattr(train, "model_class", lambda source: model)
        with installed(StandaloneHost(tmp_path)):
            made, told, _ = new_run(LoadedModel(toy_source), make_data(), "t", steps=1, **inputs)
        return made["config"], told

    return run


def test_settings_that_are_not_connected_are_those_of_the_recipe(asked):
    config, told = asked("SDXL", recipe="automatic")
    recipe = RECIPES["SDXL: style"]
    assert (config.lora, config.optimizer, config.timesteps, config.loss) == (
        recipe.lora,
        recipe.optimizer,
        recipe.timesteps,
        recipe.loss,
    )
    assert told == "settings of the recipe SDXL, style"


def test_prompts_are_part_of_the_plan_and_ready_before_it(make_data, toy_source, tmp_path, monkeypatch):
    planned = []
    monkeypatch.setattr(train, "fitted", lambda *given: (planned.append(given), (given[2], "told"))[1])
    monkeypatch.setattr(type(toy_source), "default_resolution", 6, raising=False)
    monkeypatch.setattr(type(toy_source), "latent_shape", lambda *_: (4, 6, 6), raising=False)
    with installed(StandaloneHost(tmp_path)):
        asked = new_run(LoadedModel(toy_source), make_data(), "t", steps=1, prompts=Prompts(("a", "b")))
    assert asked[1] == "told"
    assert planned[0][-1] is asked[2]
    assert asked[2].shape == (4, 6, 6)


def test_what_is_connected_stays(asked):
    own = {
        "lora": LoRAConfig(rank=3),
        "optimizer": OptimizerConfig(lr=3e-3),
        "timesteps": TimestepConfig("logit_normal"),
        "loss": LossConfig("huber"),
    }
    config, told = asked("SDXL", recipe="automatic", **own)
    assert {name: getattr(config, name) for name in own} == own
    assert told == ""


@pytest.mark.parametrize(
    ("model", "given"), [("SDXL", {}), ("SDXL", {"recipe": "none"}), ("Unheard", {"recipe": "automatic"})]
)
def test_without_one_they_are_what_they_were(asked, model, given):
    config, told = asked(model, **given)
    assert (config.lora, config.optimizer) == (LoRAConfig(preset="attention"), OptimizerConfig())
    assert (config.timesteps, config.loss, told) == (TimestepConfig(), LossConfig(), "")


def test_the_recipe_of_pairs_is_another_one():
    assert fitting("Flux", "style") is RECIPES["Flux dev: style"]
    assert fitting("Flux", "edit") is RECIPES["Flux Kontext: edit"]
    assert fitting("WAN21", "style") is RECIPES["Wan 2.1: style"]


def test_a_training_saves_its_lora_under_the_name_it_is_given(make_data, toy_source, tmp_path):
    with installed(StandaloneHost(tmp_path)):
        done = RolloutTrainLoRA.execute(
            model=LoadedModel(toy_source), data=make_data(), run_name="t", steps=2, save_lora_as=" mine "
        )
        unnamed = RolloutTrainLoRA.execute(
            model=LoadedModel(toy_source), data=make_data(), run_name="t", steps=2
        )
    (file,) = tmp_path.rglob("mine.safetensors")
    assert done.ui["text"][1:] == (f"saved {file}",)
    with safe_open(file, "pt") as opened:
        assert opened.keys()
    assert len(unnamed.ui["text"]) == 1
    assert list(tmp_path.rglob("loras/*")) == [file]


def test_every_advanced_widget_is_one_and_has_a_default():
    schemas = {s.node_id.removeprefix("Rollout"): s for s in (cls.define_schema() for cls in NODES)}
    for node, names in ADVANCED.items():
        own = {item.id: item for item in schemas[node].inputs}
        assert set(names) <= own.keys(), node
        assert {id for id, item in own.items() if item.extra_dict.get("advanced")} == set(names)
        assert all(own[name].default is not None for name in names)
    shown = [
        i.id for i in schemas["TrainLoRA"].inputs if hasattr(i, "default") and "advanced" not in i.extra_dict
    ]
    assert shown == [
        *("steps", "batch_size", "gradient_checkpointing", "save_every", "run_name", "preview_every"),
        "save_lora_as",
    ]
