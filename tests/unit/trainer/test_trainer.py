"""The loop: off is off, resumed is uninterrupted, counts are the formula, faults lose nothing."""

import logging
import math
import random
import sys
from dataclasses import replace

import pytest
import torch
from everything import EVERYTHING, ROLLOUT, same

from rollout_trainer.samplers import SAMPLERS
from rollout_trainer.training.lora.adapter import Adapter, LoRAConfig
from rollout_trainer.training.objective.config import ReflexFlowConfig, RolloutConfig
from rollout_trainer.training.objective.losses import LossConfig
from rollout_trainer.training.objective.timesteps import TimestepConfig
from rollout_trainer.training.runs.folder import RunFolder
from rollout_trainer.training.runs.run import Run, reopen, start, starting, train, validate
from rollout_trainer.training.trainer.config import streams
from rollout_trainer.training.trainer.optim import OptimizerConfig
from rollout_trainer.training.trainer.state import History
from rollout_trainer.training.trainer.trainer import Trainer


def trained(source, data, config, steps, root) -> Run:
    return train(start(root, "t", source, data, config), steps)


# --- off is off ---------------------------------------------------------------------------------


def plain_training(source, data, config, steps):
    """The usual LoRA training, written out without the trainer: what 'off' must be equal to."""
    g = streams(config.seed)
    adapter = Adapter(
        source.module, LoRAConfig(rank=2, alpha=2.0, targets=source.default_lora_targets), config.seed
    )
    parameters = adapter.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    bucket = data.buckets[0]
    queue = []
    for _ in range(steps):
        if not queue:
            order = torch.randperm(len(bucket), generator=g["order"]).view(-1, config.batch_size)
            queue = list(order[torch.randperm(len(order), generator=g["order"])])
        rows = queue.pop(0)
        x0 = bucket.latents[rows]
        u = 1 - torch.rand(len(rows), generator=g["timesteps"], dtype=torch.float64)
        sigma = (3 * u / (1 + 2 * u)).float()
        noise = torch.randn(x0.shape, generator=g["noise"])
        x = torch.lerp(x0, noise, sigma.view(-1, 1, 1, 1))
        output = source.denoiser().predict(x, sigma, {"context": bucket.cond["context"][rows]})
        loss = (output - (noise - x0)).square().flatten(1).mean(1).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    state = adapter.state()
    adapter.detach()
    return state


@pytest.mark.parametrize(
    "off",
    [
        RolloutConfig(),
        RolloutConfig(max_step_offset=0, probability=1.0),
        RolloutConfig(max_step_offset=5, probability=0.0),
        RolloutConfig(max_step_offset=5, ramp_steps=10, prob_start=0.0, prob_end=1.0, start_step=1000),
        RolloutConfig(max_step_offset=5, probability=1.0, start_step=1000, reuse=4),
        RolloutConfig(target="mixflow"),
        RolloutConfig(target="mixflow", probability=1.0, gamma=0.0),
        RolloutConfig(max_step_offset=5, guidance=3.0),
        RolloutConfig(preserve=" \n ", preserve_weight=2.0),
        RolloutConfig(preserve="a cat", preserve_weight=0.0),
    ],
    ids=[
        *("default", "no offset", "no chance", "before the ramp", "before the start"),
        *("mixflow, no chance", "mixflow, no gamma", "guided, no chance"),
        *("nothing to preserve", "preserved at no weight"),
    ],
)
def test_off_is_the_baseline_bit_for_bit(off, make_source, make_data, make_config, tmp_path):
    source, data = make_source("flow"), make_data()
    config = make_config(rollout=off)
    state = trained(source, data, config, 20, tmp_path).state
    assert source.calls == [4] * 20  # no extra model call
    untouched = streams(config.seed)
    for stream in ("rollout", "reuse", "captions", "dropout"):
        assert torch.equal(state.group("rng")[stream], untouched[stream].get_state())
    baseline = plain_training(make_source("flow"), data, config, 20)
    ours = state.group("adapter")
    assert ours.keys() == baseline.tensors.keys()
    assert all(torch.equal(ours[k], baseline.tensors[k]) for k in ours)


def test_on_is_not_the_baseline(toy_source, make_data, make_config, tmp_path):
    """The test above would pass if rollouts never happened at all."""
    data = make_data()
    on = trained(toy_source, data, make_config(rollout=ROLLOUT), 20, tmp_path).state
    off = trained(toy_source, data, make_config(), 20, tmp_path).state
    assert any(not torch.equal(on.group("adapter")[k], off.group("adapter")[k]) for k in on.group("adapter"))
    assert torch.equal(on.group("rng")["noise"], off.group("rng")["noise"])  # a stream each


# --- resumed is uninterrupted -------------------------------------------------------------------


def test_resumed_is_uninterrupted_bit_for_bit(make_source, make_data, make_config, tmp_path):
    """Ten random stops, with dropout, EMA, accumulation, ramp, reuse, masks, variants and two buckets all on."""
    data, config = make_data(sizes=(6, 4), masked=True, variants=3), make_config(**EVERYTHING)
    whole = trained(make_source("flow"), data, config, 24, tmp_path)
    shuffled = random.Random(7).sample(range(1, 24), 10)
    for stop in shuffled:
        first = trained(make_source("flow"), data, config, stop, tmp_path)
        again = reopen(first.folder.path, make_source("flow"), data)  # as another process would
        rest = train(again, 24 - stop)
        assert same(whole.state, rest.state)
        assert whole.state.values["meter"]["rows"] == rest.state.values["meter"]["rows"]


def test_many_stages_are_one(toy_source, make_data, make_config, tmp_path):
    data, config = make_data(), make_config(**EVERYTHING)
    run = start(tmp_path, "t", toy_source, data, config)
    for _ in range(8):
        run = train(run, 3)
    assert same(trained(toy_source, data, config, 24, tmp_path).state, run.state)


def test_handles_never_change(toy_source, make_data, make_config, tmp_path):
    """Branching: two continuations of one state, and the same one again, each give the right result."""
    data, config = make_data(), make_config(**EVERYTHING)
    first = trained(toy_source, data, config, 5, tmp_path)
    kept = {k: v.clone() for k, v in first.state.tensors.items()}
    long, short = train(first, 7), train(first, 3)
    assert (first.step, short.step, long.step) == (5, 8, 12)
    assert same(train(short, 4).state, long.state)
    assert all(torch.equal(kept[k].nan_to_num(), first.state.tensors[k].nan_to_num()) for k in kept)
    assert same(train(first, 3).state, short.state)


# --- counts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["euler", "rk4", "unipc"])
def test_counted_calls_are_the_calls(sampler, toy_source, make_data, make_config, tmp_path):
    rollout = RolloutConfig(
        max_step_offset=4, probability=0.6, steps_per_trajectory=20, sampler=sampler,
        reflexflow=ReflexFlowConfig(beta1=0.1),
    )  # fmt: skip
    state = trained(toy_source, make_data(), make_config(rollout=rollout), 15, tmp_path).state
    meter, history = state.values["meter"], state.group("history")
    assert sum(meter["calls"].values()) == len(toy_source.calls)
    assert sum(meter["rows"].values()) == sum(toy_source.calls)
    rolled, length = history["rolled"], history["length"].nan_to_num()
    cost = 4 if sampler == "rk4" else 1
    assert meter["rows"]["train"] == 15 * 4
    assert meter["rows"]["rollout"] == round(float((rolled * length).sum())) * cost
    assert meter["rows"]["clean"] == int(rolled.sum())  # one clean forward per rolled row, none for the rest
    assert meter["calls"]["clean"] == int((rolled > 0).sum())


def test_mixflow_calls_the_model_for_nothing_but_training(toy_source, make_data, make_config, tmp_path):
    """With the node's ReflexFlow at auto as well, and whatever max_step_offset says."""
    for offset in (0, 4):
        rollout = RolloutConfig(target="mixflow", probability=0.7, max_step_offset=offset)
        state = trained(toy_source, make_data(), make_config(rollout=rollout), 10, tmp_path).state
        assert state.values["meter"]["rows"] == {"train": 40, "rollout": 0, "clean": 0, "validation": 0}
        assert 15 < state.group("history")["rolled"].sum() < 40
        offset or toy_source.calls.clear()
    assert toy_source.calls == [4] * 10


def test_guided_rollouts_cost_twice_the_forwards(toy_source, make_data, make_config, tmp_path):
    """Exactly, of the same plan; at guidance 1 nothing changes; and without an empty caption they are refused."""
    rows, adapters = {}, {}
    for guidance in (1.0, 3.0):
        rollout = RolloutConfig(
            max_step_offset=4, probability=0.7, steps_per_trajectory=20, guidance=guidance,
            reflexflow=ReflexFlowConfig("off"),
        )  # fmt: skip
        run = trained(
            toy_source, make_data(), make_config(rollout=rollout, caption_dropout=0.2), 10, tmp_path
        )
        rows[guidance], adapters[guidance] = run.state.values["meter"]["rows"], run.adapter.tensors
    assert rows[3.0]["rollout"] == 2 * rows[1.0]["rollout"] > 0
    assert any(not torch.equal(adapters[1.0][k], adapters[3.0][k]) for k in adapters[1.0])
    without = replace(make_data(), empty_cond={})
    with pytest.raises(ValueError, match="guidance must be 1 for data without an empty caption, got 3"):
        start(tmp_path, "t", toy_source, without, make_config(rollout=rollout))


def test_reuse_rolls_out_in_one_of_r_steps(toy_source, make_data, make_config, tmp_path):
    rows = {}
    for reuse in (1, 4):
        rollout = RolloutConfig(max_step_offset=4, probability=1.0, steps_per_trajectory=20, reuse=reuse,
                                reflexflow=ReflexFlowConfig("off"))  # fmt: skip
        state = trained(toy_source, make_data(), make_config(rollout=rollout), 40, tmp_path).state
        rows[reuse] = state.values["meter"]["rows"]["rollout"]
        staleness = state.group("history").get("staleness")
        if reuse == 4:
            assert staleness.nan_to_num().max() <= 3
            assert set(staleness[~staleness.isnan()].tolist()) == {0.0, 1.0, 2.0, 3.0}
    assert rows[4] == pytest.approx(rows[1] / 4, rel=0.25)


def test_reflexflow_is_off_for_epsilon_and_can_be_forced_by_nobody(
    make_source, make_data, make_config, tmp_path
):
    source = make_source("epsilon")
    auto = RolloutConfig(max_step_offset=4, probability=1.0, steps_per_trajectory=20)
    state = trained(source, make_data(), make_config(rollout=auto), 5, tmp_path).state
    assert state.values["meter"]["calls"]["clean"] == 0
    assert state.group("history")["adr"].isnan().all()
    on = RolloutConfig(max_step_offset=4, probability=1.0, reflexflow=ReflexFlowConfig("on"))
    with pytest.raises(ValueError, match="reflexflow must be auto or off for a model that predicts epsilon"):
        start(tmp_path, "t", source, make_data(), make_config(rollout=on))


# --- every option does something ----------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["flow", "epsilon", "v"])
@pytest.mark.parametrize("target", ["residual", "solver_error", "clean", "corrective", "mixflow"])
def test_every_target_trains_every_kind_of_model(
    prediction, target, make_source, make_data, make_config, tmp_path
):
    rollout = RolloutConfig(max_step_offset=3, probability=1.0, steps_per_trajectory=20, target=target)
    history = trained(make_source(prediction), make_data(), make_config(rollout=rollout), 6, tmp_path).history
    assert all(math.isfinite(v) for v in history.columns["total"])
    assert sum(history.columns["rolled"]) > 0


@pytest.mark.parametrize(
    "change",
    [
        {"loss": LossConfig("huber", 0.1)},
        {"caption_dropout": 0.5},
        {"lora": LoRAConfig(rank=2, alpha=2.0, dropout=0.5)},
        {"timesteps": TimestepConfig("shifted")},
        {"timesteps": TimestepConfig(low=0.5)},
        {"accumulation": 2},
        {"optimizer": OptimizerConfig(lr=1e-2, schedule="linear")},
        {"optimizer": OptimizerConfig(lr=1e-2, warmup_steps=5)},
        {"optimizer": OptimizerConfig(lr=1e-2, grad_clip=1e-3)},
        {"optimizer": OptimizerConfig("adafactor", lr=1e-2)},
        {"seed": 4},
    ],
    ids=str,
)
def test_no_option_is_silently_ignored(change, toy_source, make_data, make_config, tmp_path):
    plain = trained(toy_source, make_data(), make_config(), 8, tmp_path).adapter.tensors
    changed = trained(toy_source, make_data(), make_config(**change), 8, tmp_path).adapter.tensors
    assert any(not torch.equal(plain[k], changed[k]) for k in plain)


def test_accumulation_averages_gradients(make_source, make_data, make_config):
    grads = []
    for accumulation in (1, 2):
        with Trainer(make_source("flow"), make_data(), make_config(accumulation=accumulation)) as trainer:
            own = []
            for _ in range(2):
                if accumulation == 1:
                    trainer.optimizer.zero_grad()
                trainer.micro_step()
                own.append([p.grad.clone() for p in trainer.parameters])
            grads.append(own)
    mean = [(a + b) / 2 for a, b in zip(*grads[0], strict=True)]
    torch.testing.assert_close(grads[1][1], mean)


@pytest.mark.parametrize("name", ["adamw8bit", "prodigy"])
def test_optional_optimizers_say_what_is_missing(
    name, toy_source, make_data, make_config, tmp_path, monkeypatch
):
    package = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}[name]
    for module in (package, f"{package}.optim"):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(RuntimeError, match=f"optimizer {name} needs the package {package}"):
        start(tmp_path, "t", toy_source, make_data(), make_config(optimizer=OptimizerConfig(name)))


def test_the_average_is_what_is_used(toy_source, make_data, make_config, tmp_path):
    run = trained(toy_source, make_data(), make_config(ema_decay=0.99), 10, tmp_path)
    average, raw = run.adapter.tensors, run.state.group("adapter")
    assert any(not torch.equal(average[k], raw[k]) for k in raw)


def test_masks_change_the_training(toy_source, make_data, make_config, tmp_path):
    plain = trained(toy_source, make_data(), make_config(), 5, tmp_path).adapter.tensors
    masked = trained(toy_source, make_data(masked=True), make_config(), 5, tmp_path).adapter.tensors
    assert any(not torch.equal(plain[k], masked[k]) for k in plain)


# --- faults -------------------------------------------------------------------------------------


def test_the_base_is_left_as_it_was(toy_source, make_data, make_config, tmp_path):
    before = {k: v.clone() for k, v in toy_source.module.state_dict().items()}
    modules = [name for name, _ in toy_source.module.named_modules()]
    trained(toy_source, make_data(), make_config(rollout=ROLLOUT), 5, tmp_path)
    after = toy_source.module.state_dict()
    assert [name for name, _ in toy_source.module.named_modules()] == modules
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not any(p.requires_grad for p in toy_source.module.parameters())


class Stop(BaseException):
    """As ComfyUI's interrupt: no Exception."""


def test_a_stop_saves_and_the_run_goes_on_from_there(make_source, make_data, make_config, tmp_path, caplog):
    data, config = make_data(), make_config(**EVERYTHING)
    run = start(tmp_path, "t", make_source("flow"), data, config)

    def watch(progress):
        if progress.step == 6:
            raise Stop

    with caplog.at_level(logging.INFO), pytest.raises(Stop):
        train(run, 20, watch)
    assert "stopped at step 6; saved" in caplog.text
    again = reopen(run.folder.path, make_source("flow"), data)
    assert again.step == 6
    assert same(train(again, 4).state, trained(make_source("flow"), data, config, 10, tmp_path).state)


def test_an_error_within_a_step_loses_only_that_step(make_source, make_data, make_config, tmp_path):
    """The state that is saved is the one at the step's start: random streams and data order go back."""
    data, config = make_data(), make_config(**EVERYTHING)
    source = make_source("flow")
    run = start(tmp_path, "t", source, data, config)
    predict = source.module.forward
    calls = []

    def failing(*args):
        calls.append(1)
        if len(calls) == 30:
            raise RuntimeError("out of memory")
        return predict(*args)

    source.module.forward = failing
    with pytest.raises(RuntimeError, match="out of memory"):
        train(run, 20)
    again = reopen(run.folder.path, make_source("flow"), data)
    assert 0 < again.step < 20
    whole = trained(make_source("flow"), data, config, 20, tmp_path)
    assert same(train(again, 20 - again.step).state, whole.state)


def test_nonfinite_losses_are_skipped_counted_and_stop_the_run(make_source, make_data, make_config, tmp_path):
    data = make_data()
    source = make_source("flow")
    run = start(tmp_path, "t", source, data, make_config(max_nonfinite=3))
    run = train(run, 4)
    good = run.adapter.tensors
    forward = source.module.forward
    source.module.forward = lambda *args: forward(*args) * float("nan")
    with pytest.raises(FloatingPointError, match="not for 3 steps in a row"):
        train(run, 10)
    source.module.forward = forward
    saved = reopen(run.folder.path, source, data)
    assert saved.step == 6  # two steps were skipped and counted, the third ended the run
    assert all(torch.equal(good[k], saved.adapter.tensors[k]) for k in good)
    assert sum(saved.history.columns["skipped"]) == 2


def test_one_nonfinite_step_does_not_spoil_the_run(make_source, make_data, make_config, tmp_path):
    source = make_source("flow")
    forward, calls = source.module.forward, []

    def sometimes(*args):
        calls.append(1)
        return forward(*args) * (float("inf") if len(calls) == 3 else 1.0)

    source.module.forward = sometimes
    run = trained(source, make_data(), make_config(), 6, tmp_path)
    assert list(run.history.columns["skipped"]) == [0, 0, 1, 0, 0, 0]
    assert all(t.isfinite().all() for t in run.adapter.tensors.values())


def test_another_model_or_other_data_is_refused(make_source, make_data, make_config, tmp_path):
    run = start(tmp_path, "t", make_source("flow"), make_data(), make_config())
    other = make_source("flow")
    other.fingerprint = "other"
    with pytest.raises(ValueError, match="model must be the one that t-0001 was trained with"):
        reopen(run.folder.path, other, make_data())
    with pytest.raises(RuntimeError, match="step 9 must have a saved state"):
        reopen(run.folder.path, make_source("flow"), make_data(), step=9).state  # noqa: B018


def test_training_works_under_inference_mode(toy_source, make_data, make_config, tmp_path):
    """ComfyUI's executor runs nodes under inference mode."""
    with torch.inference_mode():
        run = trained(toy_source, make_data(), make_config(rollout=ROLLOUT), 3, tmp_path)
        assert not run.adapter.tensors[next(iter(run.adapter.tensors))].is_inference()
    assert len(run.history) == 3


def test_the_global_random_state_is_left_alone(toy_source, make_data, make_config, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    trained(toy_source, make_data(), make_config(**EVERYTHING), 3, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_rollouts_use_the_current_weights_without_dropout(make_source, make_data, make_config):
    """Whatever the dropout, the rolled states are those of the undropped adapter at its current weights."""
    rolled = []
    for dropout in (0.0, 0.8):
        source = make_source("flow")
        config = make_config(lora=LoRAConfig(rank=2, alpha=2.0, dropout=dropout), rollout=ROLLOUT)
        with Trainer(source, make_data(), config) as trainer:
            g = torch.Generator().manual_seed(1)
            for p in trainer.parameters:
                p.data = torch.randn(p.shape, generator=g)
            seen = []
            pool_add = trainer.pool.add
            trainer.pool.add = lambda step, states, seen=seen, add=pool_add: (
                seen.append(states.x_hat),
                add(step, states),
            )
            trainer.micro_step()
        rolled.append(seen[0])
    assert torch.equal(rolled[0], rolled[1])


# --- validation ---------------------------------------------------------------------------------


def test_validation_is_the_same_every_time_and_never_rolled_out(
    make_source, make_data, make_config, tmp_path
):
    data = make_data()
    config = make_config(
        validate_every=2, rollout=ROLLOUT, ema_decay=0.9, lora=LoRAConfig(rank=2, alpha=2.0, dropout=0.5)
    )
    run = train(start(tmp_path, "t", make_source("flow"), data, config, validation=make_data(6)), 6)
    column = run.history.columns["validation"]
    assert [math.isnan(v) for v in column] == [True, False] * 3
    assert validate(run, make_data(6)) == column[-1]
    assert run.state.values["meter"]["rows"]["validation"] == 3 * 6 * 8  # validations x pictures x levels
    without = train(start(tmp_path, "t", make_source("flow"), data, config), 6)
    assert all(torch.equal(run.adapter.tensors[k], without.adapter.tensors[k]) for k in run.adapter.tensors)


def test_validation_falls_as_the_model_learns(make_source, make_data, make_config, tmp_path):
    data = make_data()
    run = start(tmp_path, "t", make_source("flow"), data, make_config(batch_size=12))
    assert validate(train(run, 60), data) < 0.97 * validate(run, data)


def test_train_steps_until_a_step_trains_no_further(toy_source, make_data, make_config, tmp_path):
    """After Resume Training at the last state, queueing again must not train on and on."""
    from rollout_trainer.host.standalone import host as standalone
    from rollout_trainer.nodes.train import RolloutTrainSteps

    run = start(tmp_path, "t", toy_source, make_data(), make_config())
    with standalone.installed(standalone.StandaloneHost(tmp_path, quiet=True)):
        first = RolloutTrainSteps.execute(run, steps=3, until_step=5)[0]
        again = RolloutTrainSteps.execute(first, steps=3, until_step=5)[0]
        more = RolloutTrainSteps.execute(first, steps=3)[0]
    assert (first.step, again.step, more.step) == (5, 5, 8)


def test_a_nonfinite_loss_under_loss_scaling_is_skipped_like_any_other(
    make_source, make_data, make_config, tmp_path
):
    source = make_source("flow")
    forward, calls = source.module.forward, []

    def sometimes(*args):
        calls.append(1)
        return forward(*args) * (float("nan") if len(calls) == 3 else 1.0)

    source.module.forward = sometimes
    run = trained(source, make_data(), make_config(autocast="fp16"), 6, tmp_path)
    assert list(run.history.columns["skipped"]) == [0, 0, 1, 0, 0, 0]
    assert all(t.isfinite().all() for t in run.adapter.tensors.values())


@pytest.mark.parametrize(
    ("dtype", "autocast", "scaled"),
    [
        (torch.float16, "off", True),  # as ComfyUI loads many models on a GPU
        (torch.float16, "bf16", False),
        (torch.float32, "fp16", True),
        (torch.float32, "off", False),
    ],
)
def test_the_loss_is_scaled_where_float16_computes(
    make_source, make_data, make_config, dtype, autocast, scaled
):
    source = make_source("flow")
    source.dtype = dtype
    with Trainer(source, make_data(), make_config(autocast=autocast)) as trainer:
        assert trainer.scaler.is_enabled() is scaled


def test_a_float16_run_that_began_without_a_scale_goes_on(make_source, make_data, make_config):
    source = make_source("flow")
    source.dtype = torch.float16
    with Trainer(source, make_data(), make_config()) as trainer:
        trainer.step()
        state = trainer.state()
    state.values["scaler"] = {}
    with Trainer(source, make_data(), make_config()) as trainer:
        trainer.load(state)
        assert math.isfinite(trainer.step().loss)
        assert trainer.state().values["scaler"]["scale"] > 1


def test_what_rollouts_cost_is_said_first(toy_source, make_data, make_config, tmp_path):
    from rollout_trainer.host.standalone import host as standalone
    from rollout_trainer.nodes.train import train_watched

    class Told(standalone.StandaloneHost):
        def progress(self, total, run=None):
            bar, texts = super().progress(total, run), []
            self.texts = texts
            bar.update = lambda done, text="", *more: texts.append(text)
            return bar

    rollout = RolloutConfig(max_step_offset=4, probability=0.5, reflexflow=ReflexFlowConfig("off"))
    for checkpointing, factor in ((False, "1.5x"), (True, "1.3x")):
        config = make_config(rollout=rollout, gradient_checkpointing=checkpointing)
        with standalone.installed(host := Told(tmp_path)):
            train_watched(starting(tmp_path, "t", toy_source, make_data(), config), 1)
        assert host.texts[0] == f"about 1.0 extra model calls per sample, {factor} the time of a plain step"


def test_a_disk_that_is_full_for_a_while_ends_no_stage(
    make_source, make_data, make_config, tmp_path, monkeypatch, caplog, saved_at_once
):
    config, data = make_config(save_every=2), make_data()
    whole = trained(make_source("flow"), data, config, 6, tmp_path / "whole")
    run = start(tmp_path, "t", make_source("flow"), data, config)
    save = RunFolder.save

    def full_at_two(folder, state, *args, **kwargs):
        if state.step == 2:
            raise RuntimeError("state must be writable, got No space left on device; free space")
        return save(folder, state, *args, **kwargs)

    monkeypatch.setattr(RunFolder, "save", full_at_two)
    told = []
    with caplog.at_level(logging.WARNING):
        run = train(run, 6, told.append)
    assert run.folder.steps() == [0, 4, 6]
    assert [now.saved for now in told] == [0, 0, 0, 4, 0, 0]
    assert "step 2 not saved, training goes on: state must be writable" in caplog.text
    assert same(run.state, whole.state)


# --- straight ways ------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_a_rollouts_model_call_is_at_most_ten_frames_deep(
    sampler, toy_source, make_data, make_config, monkeypatch
):
    """From the step to the network: torch's two frames of a module's call among them."""
    depths, network = [], type(toy_source.module)
    forward = network.forward

    def watched(*args):
        frame, depth = sys._getframe(), 0
        while frame.f_code is not Trainer.micro_step.__code__:
            frame, depth = frame.f_back, depth + 1
        depths.append(depth)
        return forward(*args)

    monkeypatch.setattr(network, "forward", watched)
    rollout = RolloutConfig(
        max_step_offset=4, probability=1.0, steps_per_trajectory=20, sampler=sampler,
        reflexflow=ReflexFlowConfig("off"),
    )  # fmt: skip
    with Trainer(toy_source, make_data(), make_config(rollout=rollout)) as trainer:
        trainer.micro_step()
    *rolled, trained_at = depths
    assert len(rolled) >= 2
    assert trained_at < min(rolled)
    assert max(rolled) <= 10


def test_a_run_starts_with_one_trainer(toy_source, make_data, make_config, tmp_path, monkeypatch):
    """Begun and trained in one go it is the run that is begun, saved, and gone on with from the disk."""
    made = []
    init = Adapter.__init__
    monkeypatch.setattr(Adapter, "__init__", lambda self, *args: (made.append(self), init(self, *args))[1])
    config = make_config(**EVERYTHING)
    with starting(tmp_path, "t", toy_source, make_data(), config) as stage:
        assert stage.run.folder.steps() == [0]
        assert stage.run.folder.is_held
        first = stage.train(4)
        second = stage.train(3)
    assert len(made) == 1
    assert (first.step, second.step) == (4, 7)
    assert not second.folder.is_held
    assert same(second.state, train(start(tmp_path, "t", toy_source, make_data(), config), 7).state)


def test_an_adapter_to_begin_with_is_what_its_average_begins_with(
    make_source, make_data, make_config, tmp_path
):
    config = make_config(ema_decay=0.9)
    given = trained(make_source("flow"), make_data(), config, 5, tmp_path).adapter
    run = start(tmp_path, "t", make_source("flow"), make_data(), config, adapter=given)
    assert all(torch.equal(run.adapter.tensors[name], value) for name, value in given.tensors.items())


def test_a_trainer_that_cannot_be_built_leaves_no_adapter_behind(
    toy_source, make_data, make_config, monkeypatch
):
    def missing(*_):
        raise RuntimeError("not installed")

    monkeypatch.setattr("rollout_trainer.training.trainer.trainer.build_optimizer", missing)
    with pytest.raises(RuntimeError, match="not installed"):
        Trainer(toy_source, make_data(), make_config())
    monkeypatch.undo()
    with Trainer(toy_source, make_data(), make_config()):  # an adapter that is there would be refused
        pass


def test_a_history_grows_by_a_row_and_no_more():
    """A column that comes late was NaN before; a column that is there is never built again."""
    history = History()
    for step in range(4):
        history.append({"total": step} | ({"validation": 1.0} if step == 2 else {}))
    total = history.columns["total"]
    history.append({"total": 4.0})
    assert history.columns["total"] is total
    assert list(total) == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert [math.isnan(v) for v in history.columns["validation"]] == [True, True, False, True, True]
    history.note("late", 7.0)
    assert history.newest()["late"] == 7.0
    assert len(history.columns["late"]) == 5


def test_nobody_waits_for_the_device_unless_somebody_looks(toy_source, make_data, make_config, tmp_path):
    """Model times are asked of the meter when they are shown, not after every step."""
    asked, told = [], []
    with starting(tmp_path, "t", toy_source, make_data(), make_config()) as stage:
        meter = stage.trainer.meter
        seconds = meter.seconds
        meter.seconds = lambda: (asked.append(1), seconds())[1]
        stage.trainer.state()
        states = len(asked)
        stage.train(5, told.append)
        assert len(asked) == 2 * states  # the state that is saved at the end, and nothing else
        assert told[-1].seconds()["train"] > 0
