"""Several datasets in one training."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from rollout_trainer.training.data.mixture import Added, mixed, seen
from rollout_trainer.training.data.order import BatchOrder
from rollout_trainer.training.trainer.trainer import Trainer


def order(data, batch_size=2, seed=1):
    return BatchOrder(data, batch_size, torch.Generator().manual_seed(seed))


@pytest.fixture
def two(make_data):
    return make_data(4), replace(make_data(6, (6, 8)), fingerprint="other")


@pytest.mark.parametrize("share", [0.5, 0.25, 0.1])
def test_batches_are_shared_as_asked_and_each_part_uses_its_samples_alike(two, share):
    first, added = two
    turns = order(mixed(first, added, Added(share)))
    ids = [turns.next().ids for _ in range(240)]
    of_added = [bool((i >= 4).all()) for i in ids]
    assert all(bool((i >= 4).all()) or bool((i < 4).all()) for i in ids)
    assert sum(of_added) == 240 * share
    for n in (10, 40, 100):  # near its share at any time, not only at the end
        assert abs(sum(of_added[:n]) - n * share) <= 1
    counts = Counter(int(i) for batch in ids for i in batch)
    for members in (range(4), range(4, 16)):
        own = [counts[i] for i in members]
        assert max(own) - min(own) <= 2


def test_a_mixed_set_may_be_mixed_again(two):
    first, added = two
    data = mixed(mixed(first, added, Added(0.5)), replace(first, fingerprint="third"), Added(0.2))
    assert [part.share for part in data.parts] == pytest.approx([0.4, 0.4, 0.2])
    assert len(data) == 4 + 12 + 4
    turns = order(data)
    whose = Counter((int(turns.next().ids[0]) >= 4) + (int(turns.next().ids[0]) >= 16) for _ in range(5))
    assert sum(whose.values()) == 5
    assert "40% of the batches" in data.summary()
    with pytest.raises(ValueError, match="added must be one dataset, got a mixed one"):
        mixed(first, data, Added(0.5))


@pytest.mark.parametrize("done", [0, 1, 5, 13])
def test_going_on_from_a_state_is_going_on(two, done):
    data = mixed(*two, Added(0.3))
    whole = order(data, 3)
    for _ in range(done):
        whole.next()
    state, stream = whole.state_dict(), whole.generator.get_state()
    expected = [whole.next().ids.tolist() for _ in range(12)]
    resumed = order(data, 3, seed=9)
    resumed.generator.set_state(stream)
    resumed.load_state_dict(state)
    assert [resumed.next().ids.tolist() for _ in range(12)] == expected
    with pytest.raises(ValueError, match="got one of 1 parts"):
        order(two[0], 3).load_state_dict(state)


def test_training_resumes_exactly_on_a_mixed_set(two, make_source, make_config):
    data = mixed(*two, Added(0.3, caption_dropout=0.5, loss_weight=0.25))
    config = make_config(caption_dropout=0.1)

    def losses(steps, state=None):
        with Trainer(make_source("flow"), data, config) as trainer:
            if state is not None:
                trainer.load(state)
            return [trainer.step().loss for _ in range(steps)], trainer.state()

    whole, _ = losses(9)
    first, state = losses(4)
    assert first + losses(5, state)[0] == whole


def gradients(data, make_source, config, steps=4):
    with Trainer(make_source("flow"), data, config) as trainer:
        return [
            float(trainer.step().loss) and float(trainer.history.newest()["grad_norm"]) for _ in range(steps)
        ]


def test_the_loss_weight_scales_the_gradient_of_its_part_alone(two, make_source, make_config):
    from rollout_trainer.training.trainer.optim import OptimizerConfig

    config = make_config(optimizer=OptimizerConfig(lr=1e-10))
    plain = gradients(mixed(*two, Added(0.5)), make_source, config)
    light = gradients(mixed(*two, Added(0.5, loss_weight=0.25)), make_source, config)
    ratios = [a / b for a, b in zip(light, plain, strict=True)]
    assert sorted(ratios) == pytest.approx([0.25, 0.25, 1, 1], rel=1e-3)


def test_each_part_has_its_own_caption_dropout(two, make_source, make_config):
    first, added = two
    data = mixed(first, added, Added(0.5, caption_dropout=1.0))
    dropped = Counter()
    with Trainer(make_source("flow"), data, make_config()) as trainer:
        for _ in range(20):
            batch = trainer.order.next()
            cond = trainer.noised(batch, torch.full((4,), 0.5)).cond["context"]
            dropped[bool((batch.ids >= 4).all()), bool((cond == 0).all())] += 1
    assert dropped == {(True, True): 10, (False, False): 10}


def test_how_often_pictures_are_seen_is_said_and_too_often_warned_of(two):
    first, added = two
    assert seen(first, 400) == ["4 samples, each seen 100 times"]
    lines = seen(mixed(first, added, Added(0.25)), 2000)
    assert lines[0] == "part 1 (75% of the batches): 4 samples, each seen 375 times"
    assert lines[1].startswith("a picture is seen 375 times, which is often")
    assert lines[2] == "part 2 (25% of the batches): 12 samples, each seen 41.7 times"
    first.buckets[0].repeats[0] = 9
    assert seen(first, 120) == ["4 samples, each seen 10 times a repeat, at most 90"]


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"share": 0.0}, "share must be above 0 and below 1, got 0.0"),
        ({"share": 1.0}, "share must be above 0 and below 1"),
        ({"share": 0.5, "caption_dropout": 2.0}, "caption_dropout must be from 0 to 1"),
        ({"share": 0.5, "loss_weight": float("nan")}, "loss_weight must be at least 0"),
    ],
)
def test_bad_shares_are_refused(values, line):
    with pytest.raises(ValueError, match=line):
        Added(**values)


def test_data_of_another_model_or_without_an_empty_caption_is_refused(two):
    first, added = two
    bucket = replace(first.buckets[0], latents=torch.zeros(4, 16, 6, 6))
    with pytest.raises(ValueError, match="added must be encoded by the same model"):
        mixed(first, replace(added, buckets=(bucket,)), Added(0.5))
    with pytest.raises(ValueError, match="caption_dropout must be 0 for data without an empty caption"):
        mixed(first, replace(added, empty_cond={}), Added(0.5, caption_dropout=0.1))


def test_pictures_are_held_out_of_all_parts_and_each_keeps_its_share(two):
    from rollout_trainer.training.data.holdout import hold_out

    first, added = two
    buckets = tuple(replace(b, names=tuple(f"added {n}" for n in b.names)) for b in added.buckets)
    taught, held = hold_out(mixed(first, replace(added, buckets=buckets), Added(0.25)), 0.4)
    assert len(taught) + len(held) == 16
    assert sum(part.buckets for part in taught.parts) == len(taught.buckets)
    assert [part.share for part in taught.parts] == [0.75, 0.25]
    for data in (taught, held):
        order(data).next()
