"""Core's MODEL, CLIP and VAE, and pictures as they are, where prepared ones would do."""

import types

import pytest

from rollout_trainer.host.standalone.host import StandaloneHost, installed
from rollout_trainer.nodes import comfy, data
from rollout_trainer.nodes.comfy import as_model
from rollout_trainer.nodes.data import as_data
from rollout_trainer.nodes.train import RolloutTrainLoRA
from rollout_trainer.training.models.source import LoadedModel


def test_a_model_of_ours_is_taken_as_it_is_and_needs_no_clip(toy_source):
    model = LoadedModel(toy_source)
    assert as_model(model) is model
    with pytest.raises(ValueError, match="clip and vae must not be connected for toy"):
        as_model(model, clip=object())


def test_a_model_of_the_host_is_wrapped_with_its_clip_and_vae(monkeypatch):
    monkeypatch.setattr(comfy, "models", types.SimpleNamespace(ComfyModel=lambda *given: given))
    monkeypatch.setattr(comfy, "HostModel", lambda network: network)
    assert as_model("MODEL", "CLIP", "VAE").source == ("MODEL", "CLIP", "VAE", 0.0)


def test_pictures_are_encoded_for_the_model_and_encoded_data_is_left_alone(
    make_data, toy_source, monkeypatch, tmp_path
):
    encoded, asked = make_data(), []
    assert as_data(encoded, LoadedModel(toy_source)) is encoded
    monkeypatch.setattr(data, "encode", lambda *given: (asked.append(given), encoded)[1])
    with installed(StandaloneHost(tmp_path)):
        assert as_data("pictures", LoadedModel(toy_source)) is encoded
    assert asked[0][:4] == ("pictures", toy_source, None, tmp_path / "cache")


def test_train_lora_takes_a_checkpoint_and_a_folder_directly():
    own = {i.id: i.io_type.split(",") for i in RolloutTrainLoRA.define_schema().inputs}
    assert own["model"] == ["ROLLOUT_MODEL", "MODEL"]
    assert own["data"] == ["ROLLOUT_DATA", "ROLLOUT_DATASET"]
    assert (own["clip"], own["vae"]) == (["CLIP"], ["VAE"])
