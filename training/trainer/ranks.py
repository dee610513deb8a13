"""The processes that train one LoRA together, one card each: `ALONE`, or a `Group` as accelerate launches it.

Every rank draws the whole batch from the same streams, computes the rows that it is dealt, and gets the sum of all
gradients; so all of them hold the same state, which knows nothing of their number. What the ranks tell each other goes
over gloo on the CPU, gradients over what the device has. Before every exchange of tensors all ranks meet: whoever ends
early says so there, and nobody waits for a rank that is gone.
"""

from __future__ import annotations

import logging
import os
import platform
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from ..objective.rollout import RolloutPlan
from ..objective.states import RolledStates, Trail
from .deal import Share, Work, merged, share_of, whole

logger = logging.getLogger(__name__)
T = TypeVar("T")

JOIN_SECONDS = 600
"""How long the ranks wait for each other to load the model and to start training."""
ANSWER_SECONDS = 8
"""How long a rank has to say that it is still here after another was lost."""
SUM_SECONDS = 120
"""How long the sum of gradients may take once all ranks have met."""
WAIT_SECONDS = 1e-4
GOING, NONFINITE, STOPPING, FAILED = range(4)
"""What a rank says when they meet: it goes on, its rollout left the finite numbers, it was told to stop, it failed."""
NUMBERS = 16
"""How many numbers a rank tells the others at most when they meet."""
PACKAGES = ("torch", "diffusers", "peft", "rollout-trainer")
"""Packages that must be of one version on all ranks."""


@dataclass(frozen=True)
class Launch:
    """Which of several processes this one is, as its environment says."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Its number on this machine, which is the number of its card."""

    @property
    def first(self) -> bool:
        """Whether this process is the one that saves and shows."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.size > 1


def launched(environment: Mapping[str, str] = os.environ) -> Launch:
    """What `accelerate launch` or torchrun told this process; the only one if nobody did."""
    size = int(environment.get("WORLD_SIZE", 1))
    if size == 1:
        return Launch()
    return Launch(int(environment["RANK"]), size, int(environment.get("LOCAL_RANK", 0)))


class RankLostError(RuntimeError):
    """Another rank is gone, or does not answer."""


class RankFailedError(RuntimeError):
    """Another rank ended with an error."""


class RankStopped(BaseException):
    """Another rank was told to stop; like a stop of this one's own, no `Exception`."""


class Ranks:
    """One process alone, which is also what every one of several does."""

    rank = 0
    size = 1

    @property
    def first(self) -> bool:
        """Whether this rank writes files and shows progress: the lowest that is still here."""
        return True

    def share(self, n: int, plan: RolloutPlan | None, work: Work) -> Share:
        """What this rank computes of a batch of `n` rows."""
        return whole(plan)

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """A FloatingPointError inside is one on every rank; all of them come here together."""
        yield

    def trail(self, share: Share, plan: RolloutPlan, own: Trail | None) -> Trail | None:
        """The trail of the whole plan, of the ranks' own."""
        return own

    def summed(self, parameters: Sequence[nn.Parameter], terms: Tensor, weights: Tensor) -> Tensor:
        """Replace the gradients by their sum over the ranks, which have just met, as in `counted`.

        Args:
            terms: [A, K] what this rank measured of A batches, on the device.
            weights: [A, K] what that counts in the whole; NaN where no rank measured anything.

        Returns:
            [A, K] the weighted sum over the ranks.
        """
        return terms

    def counted(self, counts: list[int]) -> list[int]:
        """The sums over the ranks of what each has counted since the last time."""
        return counts

    def same(self, facts: Mapping[str, Any]) -> None:
        """Check that every rank was given the same.

        Raises:
            ValueError: naming the first fact that differs.
        """

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` gives on the first rank, on every rank."""
        return make()

    def any(self, own: bool) -> bool:
        """Whether a rank says so."""
        return own

    def meet(self) -> None:
        """Wait for all ranks."""

    @contextmanager
    def leaving(self, err: BaseException) -> Iterator[None]:
        """Tell the others why this rank ends its training early; it waits for them after the block."""
        yield


ALONE = Ranks()


class Group(Ranks):
    """One of several processes.

    Args:
        launch: which one.
        device: where it computes.

    Raises:
        ValueError: there is no card for this rank.
        RankLostError: not all ranks came.
    """

    def __init__(self, launch: Launch, device: torch.device) -> None:
        cards = torch.cuda.device_count()
        if device.type == "cuda" and launch.local_rank >= cards:
            raise ValueError(
                f"rank {launch.rank} must have a card of its own, this machine has {cards}; launch with "
                f"--num_processes {cards}"
            )
        self.rank, self.size = launch.rank, launch.size
        self._device = device
        self._lost: set[int] = set()
        patience = timedelta(seconds=JOIN_SECONDS)
        try:
            from accelerate import PartialState

            PartialState(cpu=device.type == "cpu", timeout=patience)
            self._talk = dist.new_group(backend="gloo", timeout=timedelta(days=2))
            self._store = dist.TCPStore(  # type: ignore[attr-defined]
                os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=patience
            )
            me = f"{socket.gethostname()}, process {os.getpid()}"
            self._who: list[str] = self._gathered(me)
        except (RuntimeError, OSError) as err:  # the group's own errors are of many classes
            raise RankLostError(
                f"{launch.size} processes must train together, but rank {launch.rank} did not reach the others "
                f"({str(err).splitlines()[0]}); start all of them with accelerate launch -m rollout_trainer run"
            ) from err

    @property
    def first(self) -> bool:
        """Whether this rank writes files and shows progress: the lowest that is still here."""
        return all(rank in self._lost for rank in range(self.rank))

    def share(self, n: int, plan: RolloutPlan | None, work: Work) -> Share:
        """What this rank computes of a batch of `n` rows."""
        return share_of(self.rank, self.size, n, plan, work)

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """A FloatingPointError inside is one on every rank; all of them come here together."""
        try:
            yield
        except FloatingPointError:
            self._exchange([NONFINITE])
            raise
        said = self._exchange([GOING])
        for rank, (code,) in enumerate(said):
            if code == NONFINITE:
                raise FloatingPointError(f"a rollout of rank {rank} must be finite")

    def trail(self, share: Share, plan: RolloutPlan, own: Trail | None) -> Trail:
        """The trail of the whole plan, of the ranks' own."""
        assert share.planned is not None
        mine = None if own is None else (share.planned, plain(own.to(torch.device("cpu"))))
        found = [part for part in self._gathered(mine) if part is not None]
        return merged([(planned, from_plain(trail)) for planned, trail in found], plan.steps).to(self._device)

    def summed(self, parameters: Sequence[nn.Parameter], terms: Tensor, weights: Tensor) -> Tensor:
        """Replace the gradients by their sum over the ranks; the sums of `terms` come on the same way."""
        weights = weights.to(terms)
        measured = torch.where(weights == 0, 0, terms * weights)
        parts = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([part.flatten().to(measured) for part in (*parts, measured)])
        with self._noticing_loss():
            self._done(dist.all_reduce(flat, async_op=True), time.monotonic() + SUM_SECONDS)
        *sums, total = flat.split([part.numel() for part in (*parts, measured)])
        for part, own in zip(parts, sums, strict=True):
            part.copy_(own.view_as(part))
        return total.view_as(measured)

    def counted(self, counts: list[int]) -> list[int]:
        """The sums over the ranks of what each has counted since the last time."""
        return [sum(column) for column in zip(*self._exchange([GOING, *counts]), strict=True)][1:]

    def same(self, facts: Mapping[str, Any]) -> None:
        """Check that every rank was given the same.

        Raises:
            ValueError: naming the first fact that differs.
        """
        first, *others = self._gathered({**facts, "version of": versions()})
        for rank, theirs in enumerate(others, start=1):
            for name, (one, other) in differing(first, theirs):
                raise ValueError(
                    f"{name} must be the same on every rank, but it is {one} on rank 0 and {other} on rank {rank}; "
                    "start all of them with the same workflow, files and packages"
                )

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` gives on the first rank, on every rank; an error there is one everywhere.

        It must be plain: ComfyUI names our modules by their path, so that no other process knows our classes.
        """
        made: list[Any] = [None, None, ""]
        failure: Exception | None = None
        if self.first:
            try:
                made[0] = make()
            except (OSError, RuntimeError, ValueError) as err:
                failure, made[1], made[2] = err, isinstance(err, ValueError), str(err)
        self.meet()
        with self._noticing_loss():
            dist.broadcast_object_list(made, src=0, group=self._talk)
        value, wrong_value, text = made
        if wrong_value is not None:
            raise failure or (ValueError(text) if wrong_value else RuntimeError(text))
        return value

    def any(self, own: bool) -> bool:
        """Whether a rank says so."""
        return self.counted([int(own)]) != [0]

    def meet(self) -> None:
        """Wait for all ranks."""
        self._exchange([GOING])

    @contextmanager
    def leaving(self, err: BaseException) -> Iterator[None]:
        """Tell the others why this rank ends its training early; it waits for them after the block."""
        told = isinstance(err, RankLostError | RankFailedError | RankStopped)
        try:
            if not told:
                self._say(FAILED if isinstance(err, Exception) else STOPPING, str(err) or type(err).__name__)
        except RankLostError as lost:
            logger.warning("%s", lost)
        yield
        if not self._lost:  # so that nobody ends, and is taken for a failure, while another still saves
            with suppress(RankLostError):
                self._all_gather([GOING])

    # --- what ranks say to each other -----------------------------------------------------------

    def _say(self, code: int, why: str) -> None:
        """Tell the others, who meet, that this rank ends."""
        self._store.set(f"why/{self.rank}", why)
        self._all_gather([code])

    def _exchange(self, numbers: list[int]) -> list[list[int]]:
        """Meet: every rank's numbers, the first of each what it says.

        Raises:
            RankStopped, RankFailedError: one of them ends.
            RankLostError: one of them is gone.
        """
        said = self._all_gather(numbers)
        for rank, (code, *_) in enumerate(said):
            if code >= STOPPING:
                why = self._store.get(f"why/{rank}").decode()
                raise RankStopped(why) if code == STOPPING else RankFailedError(f"rank {rank} stopped: {why}")
        return said

    def _all_gather(self, numbers: list[int]) -> list[list[int]]:
        """The numbers of all ranks; a rank that ends early sends one, whatever the others send."""
        own = torch.zeros(NUMBERS, dtype=torch.int64)
        own[: len(numbers)] = torch.tensor(numbers)
        found = [torch.zeros_like(own) for _ in range(self.size)]
        with self._noticing_loss():
            self._done(dist.all_gather(found, own, group=self._talk, async_op=True))
        return [other[: len(numbers)].tolist() for other in found]

    def _gathered(self, value: T) -> list[T]:
        """A value of every rank, of any type."""
        found: list[Any] = [None] * self.size
        with self._noticing_loss():
            dist.all_gather_object(found, value, group=self._talk)
        return found

    def _done(self, work: dist.Work, until: float = float("inf")) -> None:
        """Wait for the others in such a way that a rank which is gone is noticed."""
        asked = time.monotonic()
        while not work.is_completed():
            time.sleep(WAIT_SECONDS)
            now = time.monotonic()
            if now > asked + 1:
                asked = now
                if now > until or self._store.check(["lost"]):
                    raise RuntimeError("a rank was lost")
        work.wait()

    @contextmanager
    def _noticing_loss(self) -> Iterator[None]:
        """A failed exchange means that a rank is gone: find out which."""
        try:
            yield
        except RuntimeError as err:
            self._lost = self._silent()
            gone = ", ".join(f"rank {rank} ({self._who[rank]})" for rank in sorted(self._lost))
            raise RankLostError(
                f"{gone or 'a rank'} is gone or does not answer; the state is saved, start again to go on"
            ) from err

    def _silent(self) -> set[int]:
        """The ranks that do not answer."""
        silent = set(range(self.size)) - {self.rank}
        try:
            self._store.set("lost", "1")
            self._store.set(f"here/{self.rank}", "1")
            until = time.monotonic() + ANSWER_SECONDS
            while len(silent) > 1 and time.monotonic() < until:
                silent = {rank for rank in silent if not self._store.check([f"here/{rank}"])}
                time.sleep(0.05)
        except RuntimeError:  # without a launcher the first rank keeps the store
            return {0}
        return silent


def plain(trail: Trail) -> dict[str, Any]:
    """A trail as plain values."""
    return vars(trail) | {"ends": dict(vars(trail.ends))}


def from_plain(values: dict[str, Any]) -> Trail:
    """Inverse of `plain`."""
    return Trail(**{**values, "ends": RolledStates(**values["ends"])})


def differing(one: Any, other: Any, name: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """The leaves of two nested mappings that are not equal, by their path."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in [*one, *(key for key in other if key not in one)]:
            yield from differing(one.get(key), other.get(key), f"{name} {key}".strip())
    elif one != other:
        yield name, (one, other)


def versions() -> dict[str, str]:
    """The versions that must agree."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def cards_told(ranks: Ranks, device: torch.device, found: int) -> str:
    """How many of the `found` cards of this machine train, in words; empty where there is nothing to say."""
    if ranks.size > 1:
        return f"{ranks.size} processes train together and share the rows of each batch"
    if device.type == "cuda" and found > 1:
        return f"1 of {found} cards trains; accelerate launch uses all of them, see More than one card in README.md"
    return ""


@cache
def _group(launch: Launch, device: torch.device) -> Group:
    return Group(launch, device)


def joined(device: torch.device) -> Ranks:
    """The ranks that this process trains with; a process joins its group once.

    Raises:
        ValueError: there is no card for this rank.
        RankLostError: not all ranks came.
    """
    launch = launched()
    return _group(launch, device) if launch.several else ALONE
