"""What other tools read in the header of a LoRA file, and that it holds no private path."""

import hashlib
import json
import shutil
from pathlib import Path

from safetensors import safe_open

from rollout_trainer.training.data.encoding import encode
from rollout_trainer.training.data.folders import read_image_folder
from rollout_trainer.training.files import read_file
from rollout_trainer.training.models.families import load_diffusers
from rollout_trainer.training.runs.export import save_lora, save_lora_of_state, without_paths
from rollout_trainer.training.runs.run import start, train
from rollout_trainer.training.trainer.config import TrainConfig

ROOT = Path(__file__).resolve().parents[3]


def test_the_header_has_what_other_tools_read(toy_source, make_data, make_config, tmp_path):
    run = train(start(tmp_path / "runs", "t", toy_source, make_data(), make_config()), 2)
    graph = {"prompt": {"1": {"inputs": {"folder": "/home/me/secret/cats"}}}, "workflow": {"nodes": []}}
    path = save_lora(run, tmp_path / "loras", "a", graph)
    with safe_open(path, "pt") as file:
        header = file.metadata()
    assert header["modelspec.sai_model_spec"] == "1.0.0"
    assert header["modelspec.architecture"] == "toy/lora"
    assert {"modelspec.title", "modelspec.implementation", "modelspec.date"} <= header.keys()
    assert (header["ss_network_dim"], header["ss_network_alpha"], header["ss_steps"]) == ("2", "2", "2")
    assert not {"ss_sd_model_hash", "ss_new_sd_model_hash"} & header.keys()  # a toy is no file
    assert json.loads(header["ss_tag_frequency"])["data"]["3"] == 1
    assert json.loads(header["ss_dataset_dirs"]) == {"data": {"n_repeats": 1, "img_count": 12}}
    assert json.loads(header["prompt"]) == {"1": {"inputs": {"folder": "cats"}}}
    assert str(tmp_path) not in json.dumps(header)
    assert "/home/me" not in json.dumps(header)


def test_other_tools_know_the_file_by_its_hash(toy_source, make_data, make_config, tmp_path):
    """As sd-scripts' addnet_hash_safetensors, of the file as it lies on the disk."""
    run = train(start(tmp_path / "runs", "t", toy_source, make_data(), make_config()), 2)
    path = save_lora_of_state(run.folder, 2, tmp_path / "loras", "a")
    content = path.read_bytes()
    own = hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()
    _, header = read_file(path)
    assert header["sshs_model_hash"] == own
    assert header["modelspec.hash_sha256"] == f"0x{own}"


def test_the_header_names_the_folders_and_the_base_file(tmp_path):
    """Names and hashes as sd-scripts writes them; no path, whether of the data or of the model."""
    private = tmp_path / "private"
    for folder, names in (("10_blob", 3), ("2_more", 2), ("", 1)):
        (private / "cats" / folder).mkdir(parents=True, exist_ok=True)
        for i in range(names):
            picture = sorted((ROOT / "demo" / "data").glob("*.png"))[i]
            shutil.copy(picture, private / "cats" / folder / f"{folder}{i}.png")
            (private / "cats" / folder / f"{folder}{i}.txt").write_text("a cat")
    model = load_diffusers(shutil.copytree(ROOT / "demo" / "model", private / "emoji"))
    data = encode(read_image_folder(private / "cats"), model, 64)
    run = train(start(tmp_path / "runs", "t", model, data, TrainConfig(steps=1, batch_size=1)), 1)
    path = save_lora(run, tmp_path / "loras", "a")
    _, header = read_file(path)
    assert json.loads(header["ss_dataset_dirs"]) == {
        "10_blob": {"n_repeats": 10, "img_count": 3},
        "2_more": {"n_repeats": 2, "img_count": 2},
        "cats": {"n_repeats": 1, "img_count": 1},
    }
    (weights,) = (private / "emoji" / "transformer").glob("*.safetensors")
    content = weights.read_bytes()
    assert header["ss_sd_model_name"] == "emoji"
    assert header["ss_new_sd_model_hash"] == hashlib.sha256(content).hexdigest()
    assert header["ss_sd_model_hash"] == hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
    assert "private" not in json.dumps(header)
    _, alone = read_file(save_lora_of_state(run.folder, 1, tmp_path / "loras", "b"))
    assert alone["ss_dataset_dirs"] == header["ss_dataset_dirs"]


def test_absolute_paths_become_names():
    private = [
        "/home/me/a/b.png",
        "C:\\Users\\me\\b.png",
        "~/x/b.png",
        "file:///home/me/b.png",
        '"/home/me/b.png"',
    ]
    assert without_paths(private) == ["b.png"] * 5
    kept = ["a red cat, 1/2", "demo/data", "/", "a\n/b c", 3, None, "re: /x/"]
    assert without_paths(kept) == kept
