"""A model folder gets no code of its own run, and no pickle read; what it cannot hide is in its fingerprint."""

import builtins
import json
import shutil
import time
from contextlib import suppress

import pytest
import torch

from rollout_trainer.training.lora.adapter import target_modules
from rollout_trainer.training.models.families import load_diffusers

EVIL = "open({!r}, 'w').write('run')\n"


@pytest.fixture
def folder(folders, tmp_path):
    shutil.copytree(folders / "sd3", tmp_path / "model")
    return tmp_path / "model"


def changed(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "where", ["text_encoder/config.json", "tokenizer/tokenizer_config.json", "vae/config.json"]
)
def test_code_that_a_folder_brings_is_never_run(where, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("asked on the terminal"))
    mark = tmp_path / "run"
    part = folder / where
    (part.parent / "evil.py").write_text(EVIL.format(str(mark)) + "class Evil: pass\n")
    changed(part, auto_map=dict.fromkeys(("AutoModel", "AutoConfig", "AutoTokenizer"), "evil.Evil"))
    with suppress(ValueError):
        load_diffusers(folder)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("part", "kind"),
    [("text_encoder", "AutoModel"), ("tokenizer", "AutoTokenizer"), ("vae", "DiffusionPipeline")],
)
def test_classes_come_from_a_list_of_ours(part, kind, folder):
    index = json.loads((folder / "model_index.json").read_text())
    changed(folder / "model_index.json", **{part: [index[part][0], kind]})
    with pytest.raises(ValueError, match=rf"{part} must be one of .*, got '{kind}'"):
        load_diffusers(folder)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_shard_that_is_a_pickle_is_refused(folder, tmp_path):
    mark = tmp_path / "run"
    part = folder / "text_encoder"
    torch.save({"x": Bomb(mark)}, part / "evil.bin")
    (part / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": {"a": "evil.bin"}})
    )
    with pytest.raises(
        ValueError, match=r"text_encoder must have .safetensors weights alone, but its index names 'evil.bin'"
    ):
        load_diffusers(folder)
    assert not mark.exists()


def test_weights_of_every_kind_are_in_the_fingerprint(folder):
    (folder / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"a")
    before = load_diffusers(folder).fingerprint
    (folder / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"b")
    assert load_diffusers(folder).fingerprint != before


def test_targets_that_explode_are_given_up_in_time(folder):
    """Before, this held the whole server for ever."""
    module = load_diffusers(folder).module
    for pattern in ("^([a-z_.0-9]+)+!$", r"^(\w|[a-z.]|\.)+#?[^\d\w.]$"):
        begun = time.monotonic()
        with pytest.raises(
            ValueError, match=r"targets must (be found in 2 s, got .*; write it|match module names)"
        ):
            target_modules(module, (pattern,))
        assert time.monotonic() - begun < 5


@pytest.mark.parametrize("pattern", ["(", "(?P<a", "a{99999999999}", "(" * 5000])
def test_targets_that_are_no_expression_are_told_in_one_line(pattern, folder):
    module = load_diffusers(folder).module
    with pytest.raises(ValueError, match="targets must") as told:
        target_modules(module, (pattern,))
    assert len(str(told.value)) < 300
