"""The main job, end to end: the shipped quick start teaches the demo model a style that one can measure and see."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from rollout_trainer.__main__ import main
from rollout_trainer.demo.style import style_rate
from rollout_trainer.training.data.dataset import read_image_folder
from rollout_trainer.training.data.encoding import encode
from rollout_trainer.training.models.families import load_diffusers
from rollout_trainer.training.pictures.sampling import sample
from rollout_trainer.training.runs.run import reopen

ROOT = Path(__file__).resolve().parents[2]
UNSEEN = [
    line.strip() for line in (ROOT / "demo/unseen_captions.txt").read_text().splitlines() if line.strip()
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The quick start, run once with the command line, as `python dev.py demo` does."""
    out = tmp_path_factory.mktemp("quickstart")
    code = main(["run", str(ROOT / "workflows/quickstart.json"), "--out", str(out)])
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return SimpleNamespace(out=out, code=code, report=report)


@pytest.fixture(scope="module")
def model():
    return load_diffusers(ROOT / "demo/model")


@pytest.fixture(scope="module")
def trained(run, model):
    """The trained model, from the run's folder as another process would open it."""
    data = encode(read_image_folder(ROOT / "demo/data"), model)
    return reopen(Path(run.report["run"]), model, data)


def test_the_report_adds_up(run):
    report = run.report
    assert run.code == 0
    assert report["steps"] == len(report["loss"]["total"]) == len(report["rollout"]["probability"])
    calls, rows = report["model_calls"], report["row_evaluations"]
    assert calls["train"] == report["steps"]
    assert rows["train"] % report["steps"] == 0
    assert rows["rollout"] > calls["rollout"] > calls["train"]  # all rows of a step go together
    assert rows["clean"] == 0  # ReflexFlow is bypassed since the study found it worse
    assert all(v is None or np.isfinite(v) for name in ("base", "fc", "adr") for v in report["loss"][name])
    assert all(v is None for v in report["loss"]["adr"])
    assert len(report["drift"]["sigma"]) == len(report["drift"]["drift"]) == len(report["drift"]["floor"])
    assert report["peak_memory_mb"] < 2048
    assert report["seconds"] > 0


def test_the_loss_falls(run):
    total = run.report["loss"]["total"]
    assert np.mean(total[-30:]) < 0.6 * np.mean(total[:30])


def test_the_pictures_are_there_and_show_something(run):
    assert len(run.report["images"]) == 4  # two filmstrips, the loss, before and after
    for name in run.report["images"]:
        picture = np.asarray(Image.open(run.out / name).convert("RGB"), dtype=float)
        assert min(picture.shape[:2]) > 200
        assert picture.std() > 10


def test_captions_of_the_measure_were_never_trained_on():
    trained_on = {path.read_text().strip() for path in (ROOT / "demo/data").glob("*.txt")}
    assert len(UNSEEN) == 24
    assert not trained_on & set(UNSEEN)


def test_the_style_is_learned_on_captions_never_seen(trained, model):
    before = style_rate(sample(trained.model.with_adapter(None), UNSEEN, cfg=2.0, seed=1))
    after = style_rate(sample(trained.model, UNSEEN, cfg=2.0, seed=1))
    print(f"style rate on unseen captions: {before:.1%} before, {after:.1%} after")
    assert before < 0.05
    assert after > 0.90


def test_the_lora_file_loads_in_diffusers_and_acts_as_the_adapter_did(run, trained, model):
    from diffusers import StableDiffusion3Pipeline

    pipe = StableDiffusion3Pipeline.from_pretrained(
        ROOT / "demo/model", text_encoder_3=None, tokenizer_3=None, torch_dtype=torch.float32
    )
    g = torch.Generator().manual_seed(0)
    cond = model.encode_text(UNSEEN[:4])
    x, sigma = torch.randn(4, 16, 16, 16, generator=g), torch.tensor([0.2, 0.5, 0.8, 1.0])

    def theirs():
        with torch.no_grad():
            return pipe.transformer(
                x,
                timestep=sigma * 1000,
                encoder_hidden_states=cond["context"],
                pooled_projections=cond["pooled"],
                return_dict=False,
            )[0]

    base = theirs()
    pipe.load_lora_weights(run.report["lora"])
    loaded = theirs()
    with trained.model.denoiser() as denoiser, torch.no_grad():
        ours = denoiser.predict(x, sigma, cond)
    difference, effect = float((loaded - ours).abs().max()), float((loaded - base).abs().max())
    print(f"loaded LoRA against the trained adapter: {difference:.2e}; effect of the LoRA: {effect:.2f}")
    assert difference < 1e-4
    assert effect > 0.1


def test_the_file_says_what_it_is(run, trained):
    with safe_open(run.report["lora"], framework="pt") as file:
        metadata = file.metadata()
    assert metadata["base_fingerprint"] == trained.source.fingerprint
    assert (metadata["rank"], metadata["step"]) == ("8", str(run.report["steps"]))
    assert json.loads(metadata["config"])["rollout"]["target"] == "residual"


def test_a_second_run_gives_the_same_adapter(run, trained, tmp_path):
    """The first 20 steps, again from the state before the first: bit for bit."""
    from rollout_trainer.training.runs.run import train

    start = reopen(trained.folder.path, trained.source, trained.data, step=0)
    again = train(start, 20)
    assert again.history.columns["total"] == trained.history.columns["total"][:20]
