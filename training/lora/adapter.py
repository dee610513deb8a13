"""LoRA-like adapters through peft: inject, run, read out, take off again.

The base network is left exactly as it was found: the modules that peft wraps are put back on
`detach`, so one loaded model serves training, previews and sampling in turn.
"""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import regex
import torch
from peft import (
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    PeftConfig,
    get_peft_model_state_dict,
    inject_adapter_in_model,
)
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..checks import check_settings, setting
from .forward import fuse

MATCH_SECONDS = 2.0
"""Longest time that one of the targets may take to be looked for in all names."""
AdapterKind = Literal["lora", "dora", "loha", "lokr"]
Preset = Literal["attention+mlp", "attention", "all", "custom"]
_NAME = "default"  # peft's name for the one adapter we keep on a module
SCALED_FACTORS = (".lora_B.weight", ".hada_w1_a", ".lokr_w1", ".lokr_w1_a")
"""The factor of an adapter that carries alpha / rank (LoKr: whichever of its two is there)."""
OUTER = (".lora_B.weight", ".hada_w1_a", ".hada_w2_a", ".lokr_w2_a")
"""Factors [out, rank]: new columns of 0 leave the product as it is."""
GROWING = (*OUTER, ".lora_A.weight", ".hada_w1_b", ".hada_w2_b", ".lokr_w2_b")
"""Factors with an axis of the rank."""


@dataclass(frozen=True)
class LoRAConfig:
    """Shape of an adapter and the modules that get it.

    dora decomposes weights into size and direction, loha is a Hadamard, lokr a Kronecker product. `dropout` is of the
    adapter's input for lora and dora, of ranks for loha and lokr.
    """

    kind: AdapterKind = setting(
        "lora",
        "lora is the common choice. dora is slower and often a little better. loha and lokr reach a higher rank with "
        "as many parameters.",
        choices=get_args(AdapterKind),
    )
    rank: int = setting(
        16,
        "Size of the LoRA: 4 to 16 for a style, 16 to 64 for much new content. A larger one overfits sooner.",
        low=1,
        high=4096,
    )
    alpha: float = setting(
        16.0,
        "How strongly the LoRA acts: it is scaled by alpha / rank. The same as rank is neutral, 0 trains nothing.",
        low=0,
        step=0.5,
    )
    dropout: float = setting(
        0.0,
        "Share of the LoRA that is switched off at random in training, against overfitting: 0.05 to 0.2 for small "
        "datasets. Rollouts and samples always use all of it.",
        low=0,
        high=0.9,
        step=0.01,
    )
    targets: tuple[str, ...] = setting(
        (),
        "Layers that get the LoRA: regular expressions that are looked for in the names of layers, one per line. "
        "Empty: those of the preset.",
    )
    preset: Preset = setting(
        "attention+mlp",
        "Which layers get the LoRA. attention+mlp: attention and MLP of all blocks, as most trainers do; attention: "
        "fewer, for a light touch and a smaller file; all: every linear layer; custom: those that targets names.",
        choices=get_args(Preset),
    )
    factor: int = setting(
        -1,
        "lokr alone: size of the first factor of each weight where it divides it, for files of other trainers; -1 is "
        "near the square root.",
        low=-1,
    )

    def __post_init__(self) -> None:
        check_settings(self)

    def peft_config(self, modules: list[str], unknown: set[type[nn.Module]]) -> PeftConfig:
        """The peft configuration for exactly the modules named `modules`.

        Args:
            modules: linear and convolution layers.
            unknown: classes of linear layers that are not torch's, as hosts have for quantised weights.
        """
        # A single expression is matched against whole names; a list would match name endings too.
        target = "|".join(re.escape(name) for name in modules)
        if self.kind in ("lora", "dora"):
            config = LoraConfig(
                r=self.rank,
                lora_alpha=self.alpha,  # type: ignore[arg-type]  # peft divides it by r, a float serves
                lora_dropout=self.dropout,
                target_modules=target,
                use_dora=self.kind == "dora",
            )
            config._register_custom_module(dict.fromkeys(unknown, LoraLinear))
            return config
        alpha: Any = self.alpha  # peft says int and divides it by r: a float serves
        own = {"r": self.rank, "alpha": alpha, "rank_dropout": self.dropout, "target_modules": target}
        return LoHaConfig(**own) if self.kind == "loha" else LoKrConfig(**own, decompose_factor=self.factor)


@dataclass(frozen=True)
class AdapterState:
    """An adapter off its model: plain tensors and what is needed to build it again."""

    config: LoRAConfig
    """With `targets` filled in."""
    tensors: Mapping[str, Tensor]
    """Named as peft names them, ``<module>.lora_A.weight``."""


def target_modules(module: nn.Module, patterns: tuple[str, ...]) -> list[str]:
    """Names of the linear and convolution layers in which any of `patterns` is found.

    Raises:
        ValueError: a pattern is not a regular expression, finds nothing (near names are listed), or takes more than
            `MATCH_SECONDS` over all names: some take longer than the universe, and would hold the whole server.
    """
    names = [name for name, m in module.named_modules() if isinstance(m, nn.Conv2d) or is_linear(m)]
    chosen: set[str] = set()
    for pattern in patterns:
        found = _found(pattern, names)
        if not found:
            raise ValueError(
                f"targets must match module names, got {_short(pattern)} which matches none of {len(names)}; "
                f"near names: {', '.join(_near(pattern, names)) or 'none'}"
            )
        chosen.update(found)
    return [name for name in names if name in chosen]


def _found(pattern: str, names: list[str]) -> list[str]:
    """Those of `names` in which `pattern` is found, in a limited time."""
    until = time.monotonic() + MATCH_SECONDS
    try:
        re.compile(pattern)  # the language is that of `re`; `regex` reads it too, and can be told to give up
        compiled = regex.compile(pattern)
        return [name for name in names if compiled.search(name, timeout=max(until - time.monotonic(), 1e-3))]
    except (re.error, regex.error, RecursionError, OverflowError, MemoryError) as err:
        raise ValueError(f"targets must be regular expressions, got {_short(pattern)}: {err}") from err
    except TimeoutError as err:
        raise ValueError(
            f"targets must be found in {MATCH_SECONDS:g} s, got {_short(pattern)}, which takes longer; write it "
            "without repetitions inside repetitions"
        ) from err


def _short(pattern: str) -> str:
    """A pattern as a message shows it."""
    text = repr(pattern)
    return text if len(text) <= 80 else f"{text[:77]}..."


def is_linear(module: nn.Module) -> bool:
    """Whether it maps `in_features` to `out_features` by a matrix, whatever class it is of."""
    sizes = all(isinstance(getattr(module, name, None), int) for name in ("in_features", "out_features"))
    return isinstance(module, nn.Linear) or (
        sizes and (hasattr(type(module), "weight") or hasattr(module, "weight"))
    )


def _near(pattern: str, names: list[str]) -> list[str]:
    """Up to five names whose last parts resemble `pattern`, one for each distinct ending."""
    endings = {".".join(n for n in name.split(".") if not n.isdigit()): name for name in names}
    close = difflib.get_close_matches(pattern, endings, n=5, cutoff=0.0)
    return [endings[c] for c in close]


def _check_dora_dropout(config: LoRAConfig, layers: Mapping[str, nn.Module]) -> None:
    """Refuse the one combination that peft cannot compute: it fails only when a step is under way."""
    if config.kind != "dora" or config.dropout == 0:
        return
    for name, layer in layers.items():
        if isinstance(layer, nn.Conv2d) and layer.weight.dtype != torch.float32:
            raise ValueError(
                f"dropout must be 0 for a dora adapter on convolutions that are not float32, got {config.dropout} "
                f"on {name} ({layer.weight.dtype}); load the model in float32 or set dropout to 0"
            )


USUAL = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""What weights must be stored in for adapters that compute with the weight itself."""


def _check_stored(config: LoRAConfig, layers: Mapping[str, nn.Module]) -> None:
    """Refuse kinds that compute with the base's weights where these are not numbers that one can compute with."""
    if config.kind == "lora":
        return
    for name, layer in layers.items():
        if config.kind != "dora" and not isinstance(layer, (nn.Linear, nn.Conv2d)):
            raise ValueError(
                f"kind must be lora or dora on a model whose weights are stored in fewer bits, got {config.kind} on "
                f"{name} ({type(layer).__name__}); choose lora, or load the model in bf16"
            )
        weight = layer.weight
        plain = type(weight) in (Tensor, nn.Parameter) and weight.dtype in USUAL
        if not plain:
            stored = weight.dtype if type(weight) in (Tensor, nn.Parameter) else type(weight).__name__
            raise ValueError(
                f"kind must be lora on a model with quantised weights, got {config.kind} on {name} ({stored}); choose "
                "lora, or load the model in bf16"
            )


@contextmanager
def outlined(layers: Iterable[nn.Module]) -> Iterator[None]:
    """peft asks each layer for its matrix some ten times; those that are made for each use show their size inside."""
    with ExitStack() as shown:
        for layer in layers:
            shown.enter_context(getattr(layer, "outlined", nullcontext)())
        yield


class Adapter:
    """An adapter on a module, float32 and trainable, the base frozen.

    Args:
        module: the network; its matching layers are wrapped in place until `detach`.
        config: the adapter; `config.targets` must not be empty.
        seed: seed of the initial weights (the global random state is left alone).
        device: where the adapter computes; None: where its layers lie, which differs when a host offloads them.

    Raises:
        ValueError: the targets match nothing, dora with dropout on half-precision convolutions, or another kind than
            lora on quantised weights.
        RuntimeError: the module carries an adapter already.
    """

    def __init__(
        self, module: nn.Module, config: LoRAConfig, seed: int = 0, device: torch.device | None = None
    ) -> None:
        if any(isinstance(m, BaseTunerLayer) for m in module.modules()):
            raise RuntimeError("the model must carry no adapter, but it has one; detach that first")
        self.module = module
        self.config = config
        names = target_modules(module, config.targets)
        self._wrapped = {name: module.get_submodule(name) for name in names}
        _check_dora_dropout(config, self._wrapped)
        _check_stored(config, self._wrapped)
        self._training = {m: m.training for layer in self._wrapped.values() for m in layer.modules()}
        self._trainable = [p for p in module.parameters() if p.requires_grad]
        self._attributes = set(vars(module))  # peft adds its own to the network
        try:
            module.requires_grad_(False)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                unknown = {
                    type(m) for m in self._wrapped.values() if not isinstance(m, (nn.Linear, nn.Conv2d))
                }
                with outlined([] if config.kind == "dora" else self._wrapped.values()):
                    inject_adapter_in_model(config.peft_config(names, unknown), module, adapter_name=_NAME)
            self._layers = [m for m in module.modules() if isinstance(m, BaseTunerLayer)]
            for layer in self._layers:
                layer.eval()
                fuse(layer, _NAME)
            for p in self.parameters():
                p.data = p.data.to(device or p.device, torch.float32)
        except BaseException:  # a device that is full, a stop: the module is as it was
            self.detach()
            raise

    def parameters(self) -> list[nn.Parameter]:
        """The adapter's weights, in a fixed order."""
        return [p for p in self.module.parameters() if p.requires_grad]

    @contextmanager
    def dropout(self) -> Iterator[None]:
        """Adapter dropout is active inside; nowhere else."""
        for layer in self._layers:
            layer.train()
        try:
            yield
        finally:
            for layer in self._layers:
                layer.eval()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The module computes as the base alone inside."""
        for layer in self._layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self._layers:
                layer.enable_adapters(True)

    def tensors(self) -> dict[str, Tensor]:
        """The weights by name; they share memory with the parameters."""
        tensors = get_peft_model_state_dict(self.module, adapter_name=_NAME)
        return {name: tensor.detach() for name, tensor in sorted(tensors.items())}

    def state(self) -> AdapterState:
        """A copy of the adapter as it is now, on the CPU."""
        return AdapterState(self.config, {k: v.cpu().clone() for k, v in self.tensors().items()})

    def load(self, state: AdapterState) -> None:
        """Set the weights from `state`.

        Raises:
            ValueError: `state` has other modules, shapes or names than this adapter.
        """
        own = self.tensors()
        wrong = sorted(own.keys() ^ state.tensors.keys()) or [
            k for k in own if own[k].shape != state.tensors[k].shape
        ]
        if wrong:
            raise ValueError(
                f"the adapter file must fit the model, but {wrong[0]} does not; check rank and targets"
            )
        # Not through load_state_dict: it visits the base's layers too, and a host's may take what it does not find
        # there for missing, and drop their weights.
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state.tensors[name])

    def begin_with(self, state: AdapterState) -> None:
        """Set the weights so that the adapter acts exactly as `state`, of other settings, does.

        Layers that `state` does not have, and rank beyond its own, begin as in a new adapter, without effect.

        Raises:
            ValueError: this adapter cannot act as `state`: it is of another kind, a lower rank or fewer layers.
        """
        self.load(AdapterState(self.config, enlarged(state, self.config, self.state().tensors)))

    def detach(self) -> None:
        """Put the wrapped layers back and restore what was trainable and in training mode."""
        for name, original in self._wrapped.items():
            parent, _, child = name.rpartition(".")
            setattr(self.module.get_submodule(parent), child, original)
        for m, training in self._training.items():
            m.training = training
        self.module.requires_grad_(False)
        for p in self._trainable:
            p.requires_grad_(True)
        for attribute in vars(self.module).keys() - self._attributes:
            delattr(self.module, attribute)


def enlarged(given: AdapterState, config: LoRAConfig, fresh: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an adapter of the settings `config` that acts as `given`.

    Args:
        fresh: tensors of a new adapter of these settings: names, shapes, and values where `given` has none.

    Raises:
        ValueError: there are no such tensors.
    """
    if given.config.kind != config.kind:
        raise ValueError(
            f"kind must be {given.config.kind} to go on from the loaded LoRA, got {config.kind}; leave out LoRA "
            "Settings, or load no LoRA"
        )
    if missing := sorted(given.tensors.keys() - fresh.keys()):
        raise ValueError(
            f"targets must include all layers of the loaded LoRA, but not {missing[0]}; leave out LoRA Settings, or "
            "load no LoRA"
        )
    if config.alpha == 0:
        raise ValueError("alpha must be above 0 to go on from the loaded LoRA, got 0; set it to its rank")
    scale = (given.config.alpha / given.config.rank) / (config.alpha / config.rank)
    return {name: _enlarged(name, given.tensors.get(name), own, scale) for name, own in fresh.items()}


def _enlarged(name: str, given: Tensor | None, fresh: Tensor, scale: float) -> Tensor:
    """One tensor of it: what lies beyond the given rank comes from `fresh`, or is 0 in the outer factor."""
    if given is None:
        return fresh
    given = given * scale if name.endswith(SCALED_FACTORS) else given
    if given.shape == fresh.shape:
        return given
    if given.ndim != fresh.ndim or any(a > b for a, b in zip(given.shape, fresh.shape, strict=True)):
        raise ValueError(
            f"rank must be at least that of the loaded LoRA, got less for {name} ({list(fresh.shape)}, loaded "
            f"{list(given.shape)}); leave out LoRA Settings, or raise rank"
        )
    if not name.endswith(GROWING):
        raise ValueError(
            f"rank must be that of the loaded LoRA for this kind, got another for {name} ({list(fresh.shape)}, "
            f"loaded {list(given.shape)}); leave out LoRA Settings"
        )
    out = torch.zeros_like(fresh) if name.endswith(OUTER) else fresh.clone()
    out[tuple(slice(size) for size in given.shape)] = given
    return out


@contextmanager
def attached(
    module: nn.Module, state: AdapterState | None, device: torch.device | None = None
) -> Iterator[None]:
    """`module` computes with the adapter `state` inside (with None, as the base)."""
    if state is None:
        yield
        return
    adapter = Adapter(module, state.config, device=device)
    try:
        adapter.load(state)
        yield
    finally:
        adapter.detach()
