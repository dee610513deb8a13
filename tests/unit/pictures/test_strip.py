"""The user's own prompts while a run trains: the pictures of inference, and no trace in the training."""

import logging

import pytest
import torch
from PIL import Image

from rollout_trainer.nodes.pictures import RolloutSamplePrompts
from rollout_trainer.training.data.dataset import read_image_folder
from rollout_trainer.training.data.encoding import encode
from rollout_trainer.training.lora.adapter import LoRAConfig
from rollout_trainer.training.models.families import load_diffusers
from rollout_trainer.training.pictures.film import jpeg
from rollout_trainer.training.pictures.sampling import Drawing, Prompts, sample
from rollout_trainer.training.pictures.strip import as_picture, read_about, sample_path
from rollout_trainer.training.runs.browse import Runs
from rollout_trainer.training.runs.live import Live
from rollout_trainer.training.runs.run import starting
from rollout_trainer.training.trainer.config import TrainConfig
from rollout_trainer.training.trainer.optim import OptimizerConfig

PROMPTS = Prompts(
    ("a cat", "a dog"), "blurred", 16, 16, steps=3, sampler="euler", order=1, cfg=2.0, seed=5, every=2
)


@pytest.fixture
def trained(folders, tmp_path):
    """``trained(prompts)``: run, its source and its facts, after five steps with dropout and a moving average."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i, caption in enumerate(("a cat", "a dog")):
        Image.new("RGB", (16, 16), (90 * i, 60, 120)).save(pictures / f"{i}.png")
        (pictures / f"{i}.txt").write_text(caption)

    def train(prompts=None):
        source = load_diffusers(folders / "sd3")
        data = encode(read_image_folder(pictures), source, resolution=16, bucket_step=source.size_multiple)
        config = TrainConfig(
            steps=5, batch_size=2, caption_dropout=0.3, ema_decay=0.5, seed=1,
            lora=LoRAConfig(rank=2, alpha=2.0, dropout=0.3), optimizer=OptimizerConfig(lr=1e-2),
        )  # fmt: skip
        drawing = None if prompts is None else Drawing(source, prompts)
        with starting(tmp_path / "runs", "t", source, data, config) as stage:
            stage.drawing = drawing
            live = Live(stage.run, 5)
            return stage.train(5, live.add), source, live.facts()

    return train


def test_prompts_are_drawn_as_inference_draws_them_and_leave_no_trace(trained):
    plain, _, none = trained()
    torch.manual_seed(9)
    before = torch.get_rng_state()
    run, source, facts = trained(PROMPTS)
    assert torch.equal(torch.get_rng_state(), before)
    assert (facts["samples"], none["samples"]) == ([0, 2, 4], [])
    for name, tensor in plain.state.tensors.items():
        assert torch.equal(tensor.nan_to_num(-7), run.state.tensors[name].nan_to_num(-7)), name
    assert plain.state.values["meter"]["calls"] == run.state.values["meter"]["calls"]

    folder = run.folder.samples_folder(4)
    assert {k: v for k, v in read_about(folder).items() if k != "version"} == {
        "step": 4,
        "prompts": ["a cat", "a dog"],
    }
    with starting(run.folder.path.parent, "again", source, run.data, run.config) as stage:
        stage.drawing = Drawing(source, PROMPTS)
        model = stage.train(4).model
    pixels = sample(model, PROMPTS.prompts, "blurred", 16, 16, 3, "euler", 1, 2.0, 5)
    for i, picture in enumerate(pixels):
        assert sample_path(folder, i).read_bytes() == jpeg(as_picture(picture.permute(1, 2, 0))), i


def test_a_drawing_that_fails_is_a_line_in_the_log(trained, monkeypatch, caplog):
    monkeypatch.setattr(Drawing, "draw", lambda self, denoiser, **_options: 1 / 0)
    with caplog.at_level(logging.WARNING):
        run, _, facts = trained(PROMPTS)
    assert (run.step, facts["samples"]) == (5, [])
    assert "no pictures of your prompts at step 2: division by zero" in caplog.text


def test_the_page_finds_them_inside_the_run_alone(trained, tmp_path):
    run, _, _ = trained(PROMPTS)
    runs = Runs(tmp_path / "runs", tmp_path, tmp_path / "loras")
    name = run.folder.path.name
    assert [drawn["step"] for drawn in runs.samples(name)] == [0, 2, 4]
    assert runs.sample(name, 2, 1) == run.folder.samples_folder(2) / "01.jpg"
    for step, number in ((2, 2), (3, 0)):
        with pytest.raises(LookupError):
            runs.sample(name, step, number)
    with pytest.raises(LookupError):
        runs.samples("../" + name)


def test_the_node_takes_one_prompt_a_line():
    own = {"every": 50, "steps": 8, "sampler": "unipc", "order": 2, "cfg": 3.0, "seed": 1}
    prompts = RolloutSamplePrompts.execute(" a cat \n\na dog", " ", 0, 64, **own)[0]
    assert prompts == Prompts(("a cat", "a dog"), "", 64, None, 8, "unipc", 2, 3.0, 1, 50)
    with pytest.raises(ValueError, match="prompts must name at least one picture"):
        RolloutSamplePrompts.execute("  \n", "", 0, 0, **own)
