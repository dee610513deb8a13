"""One run in memory: set up, step, state.

A step reads top to bottom in `Trainer.micro_step`: batch, noise level, rollout, forward, loss, backward.
Every random draw has a stream of its own (`STREAMS`), so a feature that is off changes nothing elsewhere, and a
resumed run goes on exactly where the saved one stopped.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from ...samplers import sent
from ..conditioning import Cond, controls_of, placed, select
from ..data.dataset import Batch, LatentDataset
from ..data.order import BatchOrder
from ..lora.adapter import Adapter, AdapterState
from ..models.compiled import Regions
from ..models.differentiable import has_gradient
from ..models.source import ModelSource
from ..objective.losses import TERMS, Loss, batch_loss, elementwise, masked_mean, mean_terms, terms_of
from ..objective.preserve import draw_preserved, own_states
from ..objective.reuse import StatePool
from ..objective.rollout import RolloutPlan, draw_plan, roll_out, row_evaluations
from ..objective.states import (
    Inputs,
    RolledRows,
    RolledStates,
    Trail,
    drop_captions,
    put,
    teacher_forced,
    training_goal,
)
from ..objective.targets import TARGETS
from ..objective.timesteps import draw_u, u_range
from ..pictures.film import Camera, Film
from ..pictures.sampling import Drawing
from .best import Best
from .config import TrainConfig, preserve_stream, resolved, streams
from .deal import Share, whole
from .meter import Kind, Meter
from .offload import kept_elsewhere, storages
from .optim import (
    EMA,
    build_optimizer,
    grad_norm_clip,
    pack_optimizer,
    set_lr,
    split,
    unpack_optimizer,
)
from .ranks import ALONE, Ranks
from .snapshot import Snapshot
from .state import History, RunState
from .validation import validation_loss

logger = logging.getLogger(__name__)

EVERYTHING = whole(None)
_DTYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StepReport:
    """What a watcher learns after every optimiser step."""

    step: int
    """Optimiser steps done."""
    loss: float
    probability: float
    """Chance of a rollout in this step."""
    steps_per_second: float = 0.0
    """Over this stage so far, without the time that films took."""
    row: Mapping[str, float] = field(default_factory=dict)
    """The step's row of the history."""
    seconds: Callable[[], Mapping[str, float]] = dict
    """Model time of the whole run so far, by kind, up to when it is called; waits for the device."""
    saved: int = 0
    """The step of the state that came onto the disk since the last step; 0: none did."""
    film: Film | None = None
    """A film taken since the last step."""
    drawn: bool = False
    """The user's prompts were drawn since the last step."""
    best: Best | None = None
    """The best moment so far, where the run keeps it and has one."""
    doubts: tuple[str, ...] = ()
    """Signs so far that the stage does not learn, a line each."""


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass."""

    loss: Loss
    """Of this rank's rows."""
    share: Share
    facts: Mapping[str, float]
    """Of the whole batch: what `Trainer.rollout_facts` says."""
    preserved: Tensor | None = None
    """Mean loss of the preserved rows, on the device; None where there are none, or another rank has them."""


class Trainer:
    """One run in memory. `step` trains, `state` and `load` freeze and restore everything it depends on.

    Use as a context manager: the adapter is taken off the model at the end.

    Args:
        source: the base model; nothing of it is changed for good.
        data: what is trained on.
        config: all settings.
        adapter: weights to begin with; None begins with fresh ones.
        ranks: the processes that train this run together.

    Raises:
        ValueError: settings that do not go with the model, the data or the ranks, or an adapter that does not fit.
        RuntimeError: the optimiser's package is not installed.
    """

    def __init__(
        self,
        source: ModelSource,
        data: LatentDataset,
        config: TrainConfig,
        adapter: AdapterState | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config = config = resolved(config, source)
        self.ranks = ranks
        if config.batch_size < ranks.size:
            raise ValueError(
                f"batch_size must be at least {ranks.size} with {ranks.size} processes, which share a batch's rows, "
                f"got {config.batch_size}; raise it, and lower accumulation"
            )
        if config.caption_dropout and not data.empty_cond:
            raise ValueError(
                f"caption_dropout must be 0 for data without an empty caption, got {config.caption_dropout}; "
                "wire the conditioning of an empty text to the dataset"
            )
        self.data = data
        self.device = source.device
        self.denoiser = source.denoiser(_DTYPES[config.autocast])
        self.levels = u_range(config.timesteps, self.denoiser.schedule)
        self.source = source
        self.camera = Camera(self.denoiser, source, data, config.rollout, self.levels)
        self.prediction = source.prediction
        self.target = TARGETS[config.rollout.target]
        if config.rollout.guidance > 1 and config.rollout.rolls_out and not data.empty_cond:
            raise ValueError(
                f"guidance must be 1 for data without an empty caption, got {config.rollout.guidance:g}; wire the "
                "conditioning of an empty text to the dataset"
            )
        self.reflexflow = config.rollout.rolls_out and config.rollout.reflexflow.active(self.prediction)
        self.generators = streams(config.seed)
        self.preserved = self._preserved()
        self.order = BatchOrder(data, config.batch_size, self.generators["order"])
        self.meter = Meter(self.device)
        self.history = History()
        self.pool = StatePool(config.rollout.reuse)
        self.best = Best()
        self.done = 0
        self._copying: Snapshot | None = None
        self.nonfinite_in_a_row = 0
        self.seconds = 0.0  # spent in steps, over all stages
        self.fed: list[Tensor] = []  # numbers of the samples of the newest step
        self.opened = ExitStack()
        self.regions = Regions(self.denoiser.module) if config.compile else None
        opening = self.denoiser.opened(True, config.gradient_checkpointing, self.regions)
        self.opened.enter_context(opening)
        try:
            self._inject(adapter)
        except BaseException:
            self.opened.close()
            raise

    def _preserved(self) -> Cond | None:
        """Conditioning [P, ...] of the captions to preserve, made first: text encoders may need the network's place.

        Raises:
            ValueError: the model is trained at a part of the noise levels alone.
        """
        config = self.config.rollout
        if not config.preserves:
            return None
        if self.levels[1] < 1:
            raise ValueError(
                "preserve must be empty where only lower noise levels are trained, got prompts; its rollouts begin at "
                "pure noise"
            )
        self.generators["preserve"] = preserve_stream(self.config.seed)
        return placed(self.source.encode_text(config.preserved), self.device)

    def _inject(self, adapter: AdapterState | None) -> None:
        """Put the adapter on the model, and build what goes with its weights."""
        config = self.config
        self.adapter = Adapter(self.denoiser.module, config.lora, config.seed, self.device)
        self.opened.callback(self.adapter.detach)
        if adapter is not None:
            self.adapter.begin_with(adapter)
        self.parameters = self.adapter.parameters()
        self.optimizer = build_optimizer(config.optimizer, self.parameters)
        # In float16 the gradients of most layers are smaller than its smallest number, whoever chose it: a host loads
        # many models so.
        half = (_DTYPES[config.autocast] or self.source.dtype) == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=half)
        self.ema = EMA(self.parameters, config.ema_decay) if config.ema_decay else None

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *error: object) -> None:
        self.settle()
        self.opened.close()

    # --- one step -------------------------------------------------------------------------------

    def compile(self) -> str:
        """Compile the network's blocks where the run is to, once; what became of it, in words. Leaves no trace else."""
        if self.regions is None or self.regions.told:
            return "" if self.regions is None else self.regions.told
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            return self.regions.begin(self.passes())

    def passes(self) -> list[Callable[[], object]]:
        """A pass of each kind that training makes: with gradient and without, over several rows and over one."""
        many = min(2, self.config.batch_size)
        batch = self.data.batch(torch.zeros(many, dtype=torch.long)).to(self.device)
        u = torch.full((many,), sum(self.levels) / 2, dtype=torch.float64)
        sigma = self.denoiser.schedule.sigma(u).to(self.device, batch.x0.dtype)

        def output(n: int) -> Tensor:
            cond = select(batch.cond, torch.arange(n))
            return self.denoiser.predict(batch.x0[:n], sigma[:n], cond)

        def forward(n: int) -> None:
            with torch.no_grad():
                output(n)

        def training(n: int) -> None:
            has_gradient(self.denoiser.module, output(n))

        trained = {many, 1} if self.ranks.size > 1 else {many}
        rolled = {many, 1} if self.config.rollout.rolls_out else {many}
        return [
            *(partial(training, n) for n in sorted(trained)),
            *(partial(forward, n) for n in sorted(rolled)),
        ]

    @property
    def rollout_step(self) -> int:
        """Where the coming optimiser step lies in the ramp of the rollouts."""
        return self.done - self.config.rollout_from

    def step(self) -> StepReport:
        """Train one optimiser step."""
        self.compile()
        self.pool.forget(self.done)
        self.mark()
        config = self.config.optimizer
        lr = self.config.lr_at(self.done)
        set_lr(self.optimizer, lr)
        self.optimizer.zero_grad(set_to_none=True)
        self.fed.clear()
        try:
            parts = [self.micro_step() for _ in range(self.config.accumulation)]
            terms = self.summed(parts)
            self.scaler.unscale_(self.optimizer)
            norm = grad_norm_clip(self.parameters, config.grad_clip)
            measured = self.measure(terms, parts, norm)
            if not math.isfinite(measured["total"]):
                self.scaler.update()  # closes what unscale_ opened; the optimiser will not step
        except FloatingPointError:  # the model's own steps left the finite numbers
            measured = dict.fromkeys((*TERMS, "grad_norm"), math.nan)
        self.apply(measured)
        probability = self.config.rollout.probability_at(self.rollout_step)
        self.history.append(measured | {"lr": lr, "probability": probability})
        self.done += 1
        return StepReport(self.done, measured["total"], probability)

    def micro_step(self) -> Pass:
        """One forward and backward pass over this rank's share of one batch."""
        config, generators = self.config, self.generators
        batch = self.order.next(generators["captions"])
        self.fed.append(batch.ids)
        u = draw_u(config.timesteps, len(batch.x0), generators["timesteps"], self.denoiser.schedule)
        plan = draw_plan(config.rollout, self.rollout_step, u, generators["rollout"], self.levels[1])
        drawn = states = trail = None
        if plan is not None:
            drawn = self.pool.draw(self.done, len(plan.rows), batch.x0, generators["reuse"])
        share = self.ranks.share(len(u), plan, self.work if drawn is None else self.reused_work)
        inputs = self.noised(batch, u, share)
        self.order.look_ahead(generators["captions"])
        if drawn is not None:
            states = share.of_states(drawn)
        elif plan is not None:
            with self.ranks.agreed(), torch.no_grad(), self.meter.time("rollout"):
                if share.plan is not None:
                    count = partial(self.meter.count, "rollout")
                    states, trail = roll_out(
                        share.plan,
                        config.rollout,
                        self.target,
                        self.denoiser,
                        inputs,
                        count,
                        self.data.empty_cond,
                    )
            self.keep(share, plan, trail)
        rolled: RolledRows | None = None
        if share.plan is not None and states is not None:
            rolled = RolledRows(share.plan.rows, states, self.clean_output(states))
            inputs = put(inputs, rolled)
        with self.dropout():
            with self.keeping():
                output = self.predict("train", inputs.x, inputs.sigma, inputs.cond)
            with self.meter.time("train"):
                loss = self.loss(inputs, output, rolled)
                weight = 1.0 if batch.part is None else batch.part.loss_weight
                of = config.accumulation / share.weight
                self.scaler.scale(weight * loss.total / of).backward()
        return Pass(loss, share, self.rollout_facts(plan), self.preserve(batch))

    def preserve(self, batch: Batch) -> Tensor | None:
        """The pass over captions whose pictures shall stay as they are, `objective.preserve`; its mean loss.

        The first rank makes it, for all. The adapter's dropout is off: all of it is asked for.
        """
        if self.preserved is None:
            return None
        config, generator = self.config, self.generators["preserve"]
        plan = draw_preserved(config.rollout, len(next(iter(self.preserved.values()))), generator)
        noise = torch.randn(len(plan.rows), *batch.x0.shape[1:], generator=generator, dtype=batch.x0.dtype)
        noise = sent(noise, self.device)
        cond = select(self.preserved, plan.rows)
        if missing := controls_of(batch.cond).keys() - cond.keys():
            raise ValueError(
                f"preserve must be empty for data with controls, got prompts, which have no {sorted(missing)[0]}"
            )
        with self.ranks.agreed(), torch.no_grad(), self.meter.time("rollout"):
            if self.ranks.first:
                count = partial(self.meter.count, "rollout")
                x, sigma = own_states(plan, config.rollout, self.denoiser, noise, cond, count)
        if not self.ranks.first:
            return None
        with torch.no_grad(), self.adapter.disabled():
            asked = self.predict("clean", x, sigma, cond)
        with self.keeping():
            output = self.predict("train", x, sigma, cond)
        with self.meter.time("train"):
            loss = masked_mean(elementwise(config.loss, output, asked), None).mean()
            weight = config.rollout.preserve_weight / config.accumulation
            self.scaler.scale(weight * loss).backward()
        return loss.detach()

    def keep(self, share: Share, plan: RolloutPlan, trail: Trail | None) -> None:
        """Keep the states of a rollout for later steps: those that all ranks made."""
        if self.pool.reuse > 1:
            trail = self.ranks.trail(share, plan, trail)
        if trail is not None:
            self.pool.add(self.done, trail)

    def work(self, steps: int) -> float:
        """Model calls that a row rolled out over `steps` steps costs, its backward pass among them."""
        trained = self.config.evaluations
        if not steps:
            return trained
        return trained + row_evaluations(self.config.rollout, torch.tensor([steps]), self.reflexflow)

    def reused_work(self, steps: int) -> float:
        """The same where the states of an earlier rollout are used again."""
        return self.work(0) + (self.reflexflow if steps else 0)

    def summed(self, parts: list[Pass]) -> Tensor:
        """The gradients summed over the ranks; the terms of the loss of each batch, [A, 4], over all ranks' rows."""
        weights = [[part.share.weight] * 2 + [part.share.rolled_weight] * 2 for part in parts]
        terms = terms_of([part.loss for part in parts])
        self.meter.share(self.ranks.counted)
        return self.ranks.summed(self.parameters, terms, torch.tensor(weights))

    def noised(self, batch: Batch, u: Tensor, share: Share = EVERYTHING) -> Inputs:
        """This rank's rows of a batch at the targets ``u_t`` [B], teacher-forced, some of its captions dropped.

        What is random is drawn for the whole batch, so that ranks draw alike.
        """
        generators = self.generators
        noise = torch.randn(batch.x0.shape, generator=generators["noise"], dtype=batch.x0.dtype)
        chance, empty = self.config.caption_dropout, self.data.empty_cond
        if batch.part is not None:
            own = batch.part.caption_dropout
            chance, empty = chance if own is None else own, batch.part.empty_cond
        cond = drop_captions(batch.cond, empty, chance, generators["captions"])
        batch = share.of_batch(replace(batch, cond=cond)).to(self.device)
        sigma = sent(share.of_rows(self.denoiser.schedule.sigma(u)), self.device, batch.x0.dtype)
        noise = sent(share.of_rows(noise), self.device)
        return teacher_forced(self.prediction, batch.x0, noise, sigma, batch.cond, batch.mask)

    @torch.no_grad()
    def clean_output(self, states: RolledStates) -> Tensor | None:
        """``v_clean``: the model at the clean interpolants of rolled states; None without ReflexFlow."""
        if not self.reflexflow:
            return None
        clean = teacher_forced(
            self.prediction, states.x0, states.noise, states.sigma, states.cond, states.mask
        )
        return self.predict("clean", clean.x, clean.sigma, clean.cond)

    def loss(self, inputs: Inputs, output: Tensor, rolled: RolledRows | None) -> Loss:
        """The loss of a batch in the model's own prediction form."""
        config, prediction = self.config, self.prediction
        goal = training_goal(prediction, inputs, self.target, rolled, output)
        reflex = config.rollout.reflexflow
        weight = self.denoiser.loss_weight(inputs.sigma)
        loss = batch_loss(
            config.loss, reflex, prediction, output, goal, inputs.sigma, inputs.mask, rolled, weight
        )
        if rolled is None or self.device.type == "cpu":  # where a rollout that is not finite raises
            return loss
        finite = rolled.states.x_hat.isfinite().all()
        return replace(loss, total=torch.where(finite, loss.total, torch.nan))

    def predict(self, kind: Kind, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """The model's output; counted and timed as `kind`."""
        self.meter.count(kind, len(x))
        with self.meter.time(kind):
            return self.denoiser.predict(x, sigma, cond)

    def rollout_facts(self, plan: RolloutPlan | None) -> dict[str, float]:
        """Rows that were rolled, their mean length in steps, and the age of their states in optimiser steps."""
        if plan is None:
            return {"rolled": 0.0}
        facts = {"rolled": float(len(plan.rows))}
        if not self.config.rollout.slowed:
            facts["length"] = float(plan.steps.double().mean())
        if self.config.rollout.reuse > 1:
            facts["staleness"] = float(self.done - self.pool.born)
        return facts

    def measure(self, terms: Tensor, parts: list[Pass], norm: Tensor) -> dict[str, float]:
        """What the step's history row holds; the one transfer from the device per optimiser step."""
        losses, facts = mean_terms(terms), [part.facts for part in parts]
        kept = [part.preserved for part in parts if part.preserved is not None]
        preserved = torch.stack(kept).mean().reshape(1) if kept else losses[:0]
        means = torch.cat([losses, norm.reshape(1).to(losses), preserved.to(losses)])
        names = (*TERMS, "grad_norm", *(["preserve"] if kept else []))
        measured = dict(zip(names, means.tolist(), strict=True))
        measured["rolled"] = sum(f["rolled"] for f in facts)
        for name in ("length", "staleness"):
            values = [f[name] for f in facts if name in f]
            measured[name] = sum(values) / len(values) if values else math.nan
        return measured

    def apply(self, measured: dict[str, float]) -> None:
        """Update the weights, or skip a step whose loss or gradient is not finite.

        Raises:
            FloatingPointError: too many such steps in a row.
        """
        # fp16: the scaler itself skips a step whose gradients overflowed; that is how it finds its scale.
        gradient_fine = math.isfinite(measured["grad_norm"]) or self.scaler.is_enabled()
        fine = math.isfinite(measured["total"]) and gradient_fine
        measured["skipped"] = 0.0 if fine else 1.0
        if fine:
            self.settle()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.nonfinite_in_a_row = 0
            if self.ema is not None:
                self.ema.update()
            return
        self.nonfinite_in_a_row += 1
        if self.device.type != "cpu" and self.pool.born == self.done:
            self.pool.trail = None  # this step's states may be what is not finite
        spoilt = self.spoilt()
        if spoilt:
            logger.warning(
                "step %d skipped: %s must hold finite numbers alone; encode it again or leave it out",
                self.done + 1,
                spoilt,
            )
        else:
            logger.warning("step %d skipped: the loss or its gradient is not finite", self.done + 1)
        if self.nonfinite_in_a_row >= self.config.max_nonfinite:
            advice = f"{spoilt} is spoilt" if spoilt else "lower the learning rate, or train without fp16"
            raise FloatingPointError(
                f"the loss must be finite, but it was not for {self.nonfinite_in_a_row} steps in a row up to step "
                f"{self.done + 1}; {advice}"
            )

    def spoilt(self) -> str:
        """Names of samples of the newest step that are not finite themselves, a few at most; "" if all are."""
        names = [name for ids in self.fed for name in self.data.not_finite(ids)]
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    def keeping(self) -> AbstractContextManager[None]:
        """Where a forward pass inside keeps what its backward pass needs."""
        if not self.config.activation_offload:
            return nullcontext()
        return kept_elsewhere(storages([*self.denoiser.module.parameters(), *self.denoiser.module.buffers()]))

    @contextmanager
    def dropout(self) -> Iterator[None]:
        """Adapter dropout on, its random numbers from its own stream."""
        if self.config.lora.dropout == 0:
            yield
            return
        # Dropout layers draw from the global generator; lend it a seed of ours and give it back as it was.
        seed = int(torch.randint(2**62, (), generator=self.generators["dropout"])) + self.ranks.rank
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), self.adapter.dropout():
            torch.manual_seed(seed)
            yield

    def validate(self, data: LatentDataset) -> float:
        """Validation loss of the adapter as it would be saved: its moving average where there is one."""
        with self.averaged():
            return validation_loss(
                partial(self.predict, "validation"),
                self.prediction,
                self.denoiser.schedule,
                data,
                self.config.batch_size,
                self.device,
                self.config.loss,
                self.levels,
                self.denoiser.loss_weight,
            )

    def note_validation(self, data: LatentDataset) -> bool:
        """Measure the validation loss of the newest step; whether that is the best moment so far, where one is kept."""
        loss = self.ranks.from_first(lambda: self.validate(data))
        self.history.note("validation", loss)
        if not self.config.patience:
            return False
        self.best = self.best.after(self.done, loss)
        return self.best.step == self.done

    @property
    def ended(self) -> bool:
        """Whether the loss on the validation data has not fallen for as long as the run's patience lasts."""
        return self.best.exhausted(self.config.patience)

    def take_film(self) -> Film:
        """A rollout with the adapter as it would be saved; leaves no trace, not even in the meter."""
        with self.averaged():
            return self.camera.take(self.done)

    def draw(self, drawing: Drawing) -> Tensor:
        """Pictures [N, 3, H, W] of prompts with the adapter as it would be saved; leaves no trace, as `take_film`."""
        with self.averaged():
            apart = self.config.activation_offload
            latents = drawing.draw(self.denoiser, at_once=self.at_once(drawing), apart=apart)
        return self.source.preview_latents(latents.cpu())

    def at_once(self, drawing: Drawing) -> int:
        """How many of its pictures are drawn together: as much as a batch of the largest samples."""
        largest = max((bucket.shape for bucket in self.data.buckets), key=math.prod)
        return drawing.at_once(self.config.batch_size, largest)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The adapter is its moving average inside, where the run keeps one. Gradients of the last step make room."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is None:
            yield
            return
        self.settle()
        self.ema.swap()
        try:
            yield
        finally:
            self.ema.swap()

    # --- state ----------------------------------------------------------------------------------

    def mark(self) -> None:
        """Remember where the random streams, the data order and the pool stand as a step begins."""
        rng = {name: g.get_state() for name, g in self.generators.items()}
        self._marked = rng, self.order.state_dict(), (self.pool.trail, self.pool.born)

    def rewind(self) -> None:
        """Go back to the start of a step that did not end, so that its state can be saved."""
        rng, order, (self.pool.trail, self.pool.born) = self._marked
        for name, saved in rng.items():
            self.generators[name].set_state(saved)
        self.order.load_state_dict(order)

    def snapshot(self) -> Snapshot:
        """The state as it is now, for a thread that copies and keeps it while the next step is computed."""
        self.settle()
        self._copying = Snapshot(self.state(), self.device)
        return self._copying

    def settle(self) -> None:
        """Wait for a snapshot that is being copied: what it is made of is about to change."""
        if self._copying is not None:
            self._copying.hold()
            self._copying = None

    def state(self) -> RunState:
        """Everything that the next step depends on; weights and optimiser share memory with the trainer's."""
        tensors: dict[str, Tensor] = {}
        weights = self.adapter.tensors()
        groups: dict[str, dict[str, Tensor]] = {
            "adapter": weights,
            "rng": {name: g.get_state() for name, g in self.generators.items()},
            "history": self.history.tensors(),
            "pool": self.pool.tensors(),
        }
        groups["optimizer"], optimizer = pack_optimizer(self.optimizer)
        if self.ema is not None:
            averages = {p.data_ptr(): own for p, own in zip(self.parameters, self.ema.average, strict=True)}
            groups["average"] = {name: averages.get(own.data_ptr(), own) for name, own in weights.items()}
        groups["order"], order = split(self.order.state_dict())
        for group, members in groups.items():
            tensors |= {f"{group}.{name}": t for name, t in members.items()}
        values = {
            "optimizer": optimizer,
            "order": order,
            "scaler": self.scaler.state_dict(),
            "meter": self.meter.state(),
            "pool_born": self.pool.born,
            "ema_updates": self.ema.updates if self.ema else 0,
            "nonfinite_in_a_row": self.nonfinite_in_a_row,
            "seconds": self.seconds,
            "loss": finite_or_none(self.history.last("total")),
            "mean_loss": finite_or_none(self.history.recent("total")),
        }
        if self.config.patience:
            values["best"] = self.best.plain()
        return RunState(self.done, tensors, values)

    def load(self, state: RunState) -> None:
        """Go on from `state` exactly."""
        self.settle()
        values = state.values
        self.done = state.step
        if self.ema is not None:
            self.adapter.load(AdapterState(self.config.lora, state.group("average")))
            self.ema.average = [p.detach().clone() for p in self.parameters]
            self.ema.updates = values["ema_updates"]
        self.adapter.load(AdapterState(self.config.lora, state.group("adapter")))
        unpack_optimizer(self.optimizer, state.group("optimizer"), values["optimizer"])
        for name, saved in state.group("rng").items():
            self.generators[name].set_state(saved)
        self.order.load_state_dict(values["order"] | state.group("order"))
        if values["scaler"]:  # runs of before began without for models that are float16 themselves
            self.scaler.load_state_dict(values["scaler"])
        self.meter.load(values["meter"])
        self.history = History.from_tensors(state.group("history"))
        self.pool.load(state.group("pool"), values["pool_born"], self.device)
        self.best = Best.from_plain(values.get("best"))
        self.nonfinite_in_a_row = values["nonfinite_in_a_row"]
        self.seconds = values["seconds"]


@contextmanager
def training_mode() -> Iterator[None]:
    """Gradients on, whatever the host set: ComfyUI runs nodes under inference mode."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def finite_or_none(value: float) -> float | None:
    """`value` as strict JSON can hold it."""
    return value if math.isfinite(value) else None
