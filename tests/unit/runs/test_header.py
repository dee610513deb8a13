"""What other tools read in the header of a LoRA file, and that it holds no private path."""

import hashlib
import json

from safetensors import safe_open

from rollout_trainer.training.files import read_file
from rollout_trainer.training.runs.export import save_lora, save_lora_of_state, without_paths
from rollout_trainer.training.runs.run import start, train


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
    assert header["ss_new_sd_model_hash"] == "toy"
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
