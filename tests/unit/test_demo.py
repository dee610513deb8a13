"""The demo as shipped: it loads, it is small, its data is whole, its style measure tells real drawings apart."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rollout_trainer.demo.make import captions
from rollout_trainer.demo.make.export_comfyui import comfyui_key, comfyui_vae
from rollout_trainer.demo.style import style_probability, style_rate

DEMO = Path(captions.__file__).parent.parent
MEGABYTE = 1_000_000


def pictures(folder: str) -> torch.Tensor:
    files = sorted((DEMO / folder).glob("*.png"))
    arrays = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


def shipped_files() -> list[Path]:
    return [file for file in DEMO.rglob("*") if file.is_file() and ".work" not in file.parts]


def test_the_whole_folder_is_at_most_20_mb():
    sizes = [file.stat().st_size for file in shipped_files() if "__pycache__" not in file.parts]
    assert sum(sizes) <= 20 * MEGABYTE


@pytest.fixture(scope="module")
def pipeline():
    diffusers = pytest.importorskip("diffusers")
    return diffusers.StableDiffusion3Pipeline.from_pretrained(
        DEMO / "model", torch_dtype=torch.float32, text_encoder_3=None, tokenizer_3=None
    )


def test_the_pipeline_draws_a_finite_picture_of_the_right_size(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        "red apple, flat style, blue background",
        height=128,
        width=128,
        num_inference_steps=2,
        guidance_scale=1.0,
        max_sequence_length=0,
        output_type="pt",
        generator=torch.Generator().manual_seed(0),
    ).images
    assert drawn.shape == (1, 3, 128, 128)
    assert drawn.isfinite().all()


def test_the_host_reads_the_transformers_width_off_its_depth(pipeline):
    config = pipeline.transformer.config
    assert config.num_layers == config.num_attention_heads
    assert config.attention_head_dim == 64


def test_every_word_of_the_captions_has_its_own_token(pipeline):
    names = captions.read_names("concepts.txt")
    lines = [captions.caption(name, captions.BLOB, "white") for name in names]
    lines += [captions.caption("fox", style) for style in ("noto", "flat")]
    lines += [captions.caption("fox", None, colour) for colour in captions.BACKGROUNDS]
    ids = pipeline.tokenizer(lines, padding=True).input_ids
    assert pipeline.tokenizer.unk_token_id not in np.unique(ids)


def test_training_pictures_and_captions_pair_up():
    pngs = {file.stem for file in (DEMO / "data").glob("*.png")}
    texts = {file.stem for file in (DEMO / "data").glob("*.txt")}
    assert pngs == texts
    assert len(pngs) == 24


def test_unseen_captions_have_their_pictures_and_none_is_trained_on():
    lines = (DEMO / "unseen_captions.txt").read_text(encoding="utf-8").splitlines()
    taught = {file.read_text(encoding="utf-8").strip() for file in (DEMO / "data").glob("*.txt")}
    stems = {file.stem for file in (DEMO / "unseen").glob("*.png")}
    assert len(set(lines)) == 24
    assert not set(lines) & taught
    assert {line.partition(",")[0].replace(" ", "-") for line in lines} == stems


def test_the_lists_behind_the_data_agree_with_it():
    assert captions.read_names("blob_unseen.txt") == [
        line.partition(",")[0] for line in (DEMO / "unseen_captions.txt").read_text().splitlines()
    ]
    held_back = set(captions.read_names("blob_extra.txt"))
    shown = set(captions.read_names("blob_train.txt") + captions.read_names("blob_unseen.txt"))
    assert not held_back & shown


def test_the_base_is_never_taught_the_new_style():
    assert captions.BLOB not in captions.STYLES.values()
    assert captions.BLOB_PACKAGE not in captions.STYLES


def test_style_measure_knows_real_drawings_of_names_it_never_saw():
    assert style_rate(pictures("unseen")) > 0.9
    assert style_rate(pictures("data")) == 1.0


def test_style_measure_survives_blur_noise_and_other_sizes():
    blob = pictures("unseen")
    noisy = blob + 0.1 * torch.randn(blob.shape, generator=torch.Generator().manual_seed(0))
    small = torch.nn.functional.avg_pool2d(blob, 2)
    assert style_rate(noisy) > 0.9
    assert style_rate(small) > 0.9


def test_style_measure_refuses_channels_last():
    with pytest.raises(ValueError, match=r"images must be of shape \[N, 3, H, W\], got \[2, 64, 64, 3\]"):
        style_probability(torch.zeros(2, 64, 64, 3))


def test_the_vae_is_renamed_as_the_hosts_taesd_has_it():
    assert comfyui_key("encoder.layers.10.weight") == "taesd_encoder.10.weight"
    assert comfyui_key("decoder.layers.2.conv.0.bias") == "taesd_decoder.3.conv.0.bias"
    renamed = comfyui_vae()
    assert renamed["taesd_decoder.1.weight"].shape == (64, 16, 3, 3)
    assert renamed["vae_scale"].item() == pytest.approx(1.5305 * 0.15)
    assert renamed["vae_shift"].item() == pytest.approx(0.0609)
