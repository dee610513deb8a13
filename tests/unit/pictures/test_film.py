"""The film of a run: it shows what training does, leaves no trace in it, and costs a line in the log when it fails."""

import json
import logging

import pytest
import torch
from PIL import Image

from rollout_trainer.training.lora.adapter import LoRAConfig
from rollout_trainer.training.objective.config import RolloutConfig
from rollout_trainer.training.objective.timesteps import TimestepConfig
from rollout_trainer.training.pictures import film
from rollout_trainer.training.pictures.film import FRAMES, Camera
from rollout_trainer.training.runs.run import reopen, start, train
from rollout_trainer.training.trainer.optim import OptimizerConfig
from rollout_trainer.training.trainer.trainer import Trainer

ROLLOUT = RolloutConfig(max_step_offset=4, probability=0.7, steps_per_trajectory=20)
EVERYTHING = {
    "lora": LoRAConfig(rank=2, alpha=2.0, dropout=0.3),
    "ema_decay": 0.9,
    "accumulation": 2,
    "caption_dropout": 0.2,
    "optimizer": OptimizerConfig(lr=1e-2, schedule="cosine", warmup_steps=5),
    "timesteps": TimestepConfig("logit_normal"),
    "gradient_checkpointing": True,
    "save_every": 5,
    "rollout": RolloutConfig(
        max_step_offset=4, ramp_steps=12, prob_start=0.1, prob_end=0.9, steps_per_trajectory=20, reuse=3
    ),
}


def same(a, b):
    """Two states, bit for bit, seconds excepted."""
    assert a.tensors.keys() == b.tensors.keys()
    for name, tensor in a.tensors.items():
        assert torch.equal(tensor.nan_to_num(-7), b.tensors[name].nan_to_num(-7)), name
    timeless = [{k: v for k, v in s.values.items() if k not in ("seconds", "meter")} for s in (a, b)]
    assert timeless[0] == timeless[1]
    for counted in ("calls", "rows"):
        assert a.values["meter"][counted] == b.values["meter"][counted]


def started(make_source, make_data, make_config, root, prediction="flow", **changes):
    data = make_data(sizes=(6, 4), masked=True)
    return start(root, "t", make_source(prediction), data, make_config(**{**EVERYTHING, **changes}))


@pytest.fixture
def begin(make_source, make_data, make_config, tmp_path):
    return lambda *args, **changes: started(make_source, make_data, make_config, tmp_path, *args, **changes)


@pytest.mark.parametrize("prediction", ["flow", "v"])
def test_films_leave_no_trace_in_states_or_in_what_is_resumed_from_them(prediction, begin, make_source):
    plain = train(begin(prediction), 14)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    films = []
    own = train(begin(prediction, preview_every=3), 14, lambda p: films.append(p.film))
    assert torch.equal(torch.get_rng_state(), before)
    assert [f.step for f in films if f] == [0, 3, 6, 9, 12]
    assert own.folder.film_steps() == [0, 3, 6, 9, 12]
    assert plain.folder.film_steps() == []
    for step in (5, 10, 14):
        same(plain.folder.load(step), own.folder.load(step))
    again = reopen(own.folder.path, make_source(prediction), own.data, step=5)
    same(plain.state, train(again, 9, asked=lambda: {"preview"}).state)


@pytest.mark.parametrize("autocast", ["off", "bf16"])
def test_on_a_real_network_too(autocast, folders, tmp_path):
    """Recomputation, autocast, dropout and the moving average, on a transformer with an autoencoder."""
    from rollout_trainer.training.data.dataset import Bucket, LatentDataset
    from rollout_trainer.training.models.families import load_diffusers
    from rollout_trainer.training.trainer.config import TrainConfig

    source = load_diffusers(folders / "sd3", torch.device("cpu"), torch.float32)
    g = torch.Generator().manual_seed(0)
    side = source.default_resolution
    latents = torch.randn(3, *source.latent_shape(side, side), generator=g)
    texts = ("a", "b", "c")
    bucket = Bucket(latents, source.encode_text(texts), None, torch.ones(3, dtype=torch.long), texts, texts)
    data = LatentDataset((bucket,), source.encode_text([""]), "d")
    states = []
    for every in (0, 1):
        config = TrainConfig(
            lora=LoRAConfig(rank=2, alpha=2.0, dropout=0.3), rollout=ROLLOUT, ema_decay=0.9, batch_size=2,
            gradient_checkpointing=True, autocast=autocast, preview_every=every,
        )  # fmt: skip
        run = train(start(tmp_path, "t", source, data, config), 3)
        states.append(run.state)
    same(*states)
    assert run.folder.film_steps() == [0, 1, 2, 3]


def test_a_film_is_of_the_average_and_like_the_last_one_while_nothing_changes(begin):
    films = []
    run = train(begin(), 6, lambda p: films.append(p.film), asked=lambda: {"preview"})
    assert len({f.drift for f in films}) > 1
    with Trainer(run.source, run.data, run.config) as trainer:
        trainer.load(run.state)
        first, again = trainer.take_film(), trainer.take_film()
        trainer.adapter.load(run.adapter)
        averaged = Camera(trainer.denoiser, run.source, run.data, run.config.rollout).take(6)
    assert first.drift == again.drift == averaged.drift == films[-1].drift
    assert [f.tobytes() for f in first.frames] == [f.tobytes() for f in again.frames]


def test_what_is_on_the_disk(begin):
    run = train(begin(preview_every=2), 2)
    folder = run.folder.film_folder(2)
    told = json.loads((folder / "film.json").read_text())
    assert (told["step"], told["frames"]) == (2, 5)
    assert all(len(told[name]) == 5 for name in ("sigmas", "drift", "floor"))
    assert sorted(told["sigmas"], reverse=True) == told["sigmas"]
    assert told["drift"][0] == told["floor"][0] == 0
    assert sorted(p.name for p in folder.glob("*.jpg")) == [f"{i:02d}.jpg" for i in range(5)]
    with Image.open(folder / "00.jpg") as frame:
        assert frame.size == (18, 6)  # own | clean | estimate
    (folder / "film.json").unlink()
    assert run.folder.film_steps() == [0]


@pytest.mark.parametrize(
    ("config", "frames"),
    [
        (RolloutConfig(), film.LENGTH + 1),
        (RolloutConfig(max_step_offset=300, probability=1.0, steps_per_trajectory=1000), FRAMES),
        (RolloutConfig(max_step_offset=1, probability=1.0, steps_per_trajectory=1), 2),
    ],
    ids=["rollouts off", "long", "one step is all"],
)
def test_every_setting_has_a_film(config, frames, toy_source, make_data):
    taken = Camera(toy_source.denoiser(), toy_source, make_data(), config).take(0)
    assert len(taken.frames) == len(taken.sigmas) == len(taken.drift) == frames


def test_large_pictures_are_made_smaller():
    assert film.as_frame(film.as_bytes(torch.rand(1024, 3 * 512, 3))).size == (3 * 128, 256)
    assert film.as_frame(film.as_bytes(torch.rand(64, 3 * 128, 3))).size == (3 * 128, 64)


@pytest.mark.parametrize("at", [(Camera, "take"), (film.Film, "write")], ids=["taking", "writing"])
def test_a_film_that_fails_is_a_line_in_the_log(at, begin, monkeypatch, caplog):
    plain = train(begin(), 4)

    def fails(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*at, fails)
    with caplog.at_level(logging.WARNING):
        own = train(begin(preview_every=2), 4)
    assert [r.getMessage().partition(":")[0] for r in caplog.records] == [
        f"no film of step {step}" for step in (0, 2, 4)
    ]
    same(plain.state, own.state)


def test_a_stage_begins_with_a_film_unless_there_is_one(begin):
    taken = []
    run = train(begin(preview_every=2), 2)
    stamp = (run.folder.film_folder(2) / "film.json").stat().st_mtime_ns
    train(run, 1, lambda p: taken.append(p.film))
    assert taken == [None]
    assert (run.folder.film_folder(2) / "film.json").stat().st_mtime_ns == stamp


def test_the_time_of_films_is_not_the_trainings(begin, monkeypatch):
    """A clock that moves by a second for each film and by nothing else."""
    now = [0.0]
    monkeypatch.setattr("rollout_trainer.training.trainer.meter.time.perf_counter", lambda: now[0])

    def slow(self):
        now[0] += 100.0
        raise ValueError("enough")

    def watch(progress):
        rates.append(progress.steps_per_second)
        now[0] += 0.5  # the rest of the world

    rates = []
    monkeypatch.setattr(Trainer, "take_film", slow)
    forward = Trainer.step

    def step(self):
        now[0] += 1.0
        return forward(self)

    monkeypatch.setattr(Trainer, "step", step)
    run = train(begin(preview_every=1), 3, watch)
    assert rates == pytest.approx([1 / 1, 2 / 2.5, 3 / 4])
    assert run.state.values["seconds"] == pytest.approx(4.0)


def test_a_state_that_is_asked_for_is_saved_and_stays(begin, saved_at_once):
    saved = []
    asks = iter([(), {"save"}, (), (), {"save", "preview"}, ()])
    run = train(begin(save_every=3, keep=1), 6, lambda p: saved.append(p.saved), lambda: next(asks))
    assert saved == [0, 2, 3, 0, 5, 0]
    assert run.folder.steps() == [0, 2, 3, 5, 6]
    assert run.folder.film_steps() == [5]
    train(run, 7)
    assert run.folder.steps() == [0, 2, 5, 6, 12, 13]
