"""LoRA files read back: an adapter to go on training from, or to sample with.

A file's layers are found by a `KeyMap`; what each holds becomes pairs of factors at scale 1 (alpha folded in), laid
where our layers lie: parts of a fused layer become blocks of one update, files of several ranks get rows that do
nothing. So the adapter acts exactly as the file does elsewhere. What an adapter cannot hold is left out with a line
in the log, and what cannot be trained on at all is refused by name.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from peft.tuners.lokr.layer import factorization
from torch import Tensor, nn

from ..checks import from_plain
from ..files import read_file
from .adapter import SCALED_FACTORS, AdapterState, LoRAConfig, target_modules
from .file import MAGNITUDE
from .keys import KeyMap, Place, module_keys

logger = logging.getLogger(__name__)

_UP_AND_DOWN = (
    ("lora_B.weight", "lora_A.weight"),
    ("lora_up.weight", "lora_down.weight"),
    ("lora_B.default.weight", "lora_A.default.weight"),
    ("lora.up.weight", "lora.down.weight"),
    ("lora_linear_layer.up.weight", "lora_linear_layer.down.weight"),
    ("lora_B", "lora_A"),
)
_FACTORS = (
    *(f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
    *(f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
)
_ENDS: dict[str, str] = {
    **{f".{up}": "up" for up, _ in _UP_AND_DOWN},
    **{f".{down}": "down" for _, down in _UP_AND_DOWN},
    "_lora.up.weight": "up",
    "_lora.down.weight": "down",
    ".lora_mid.weight": "mid",
    ".alpha": "alpha",
    ".dora_scale": "dora_scale",
    f".{MAGNITUDE}": "magnitude",
    f".{MAGNITUDE}.weight": "magnitude",
    f".{MAGNITUDE}.default.weight": "magnitude",
    **{f".{name}": name for name in _FACTORS},
}
"""How names of a layer's tensors end, and what they are."""
_BESIDE = (".diff_b", ".diff", ".w_norm", ".b_norm", ".set_weight", ".lora_B.bias", ".reshape_weight")
"""Endings of changes beside the adapter: to biases, norms, whole weights."""
_OTHER_KINDS = {
    ".oft_blocks": "OFT", ".oft_diag": "OFT", ".oft_R.weight": "OFT", ".a1.weight": "GLoRA", ".a2.weight": "GLoRA",
    ".b1.weight": "GLoRA", ".b2.weight": "GLoRA", ".rescale": "OFT", ".on_input": "IA3",
}  # fmt: skip
"""Endings that belong to kinds of adapters that are not trained here."""
_TEXT = re.compile(
    r"(lora_(prior_)?te\d?_|lora_te\d?\.|lora_text_encoder|lycoris_te\d?_|text_encoders?(_\d)?\.|te\d?\.|bundle_emb\.|emb_params)"
)
"""How names of a text encoder's part of a file begin."""


@dataclass
class _File:
    """What a file holds, by layer."""

    path: Path
    layers: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Its name of a layer -> what each tensor is -> the tensor, float32."""
    text: list[str] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)
    unfit: list[str] = field(default_factory=list)
    """Names of tensors of text encoders, beside the adapter, and of layers that the model does not have."""

    def fault(self, text: str) -> ValueError:
        """The error to raise for a fault of this file."""
        return ValueError(f"LoRA file {self.path} {text}")


def read_lora(
    path: Path,
    module: nn.Module,
    known: KeyMap | None = None,
    weight: Callable[[str], Tensor] | None = None,
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
) -> AdapterState:
    """Read a LoRA file for `module`.

    Our own files come back as the adapter that wrote them (rank, alpha, kind and targets are in the header); files of
    others, and ours for another form of the network, as an adapter of scale 1 that acts as the file does.

    Args:
        path: the safetensors file.
        module: the network that the adapter goes on.
        known: names by which the host means its layers; they decide where they differ from the usual ones.
        weight: gives the frozen weight of a layer; None: its own. DoRA needs it.
        convert: what the host makes of a file before it looks at names.

    Raises:
        ValueError: it cannot be read, is damaged, is no LoRA, or cannot be trained on with this model.
    """
    tensors, header = read_file(path)
    keys = module_keys(module, known)
    file = _sorted(path, tensors if convert is None else convert(tensors), keys)
    base = weight or partial(_own_weight, module)
    own = _own_config(file, header, module, keys)
    state = _ours(file, own, keys, base) if own is not None else _theirs(file, module, keys, base)
    _say_what_is_left_out(file)
    return state


def _own_weight(module: nn.Module, name: str) -> Tensor:
    """The weight of a layer as it lies there."""
    return cast(Tensor, module.get_submodule(name).weight)


def _sorted(path: Path, tensors: Mapping[str, Tensor], keys: KeyMap) -> _File:
    """The file's tensors by layer, and the names of all others by what they are."""
    file, ends = _File(path), sorted(_ENDS, key=len, reverse=True)
    for name, tensor in tensors.items():
        end = next((e for e in ends if name.endswith(e)), None)
        if _TEXT.match(name):
            file.text.append(name)
        elif kind := next((k for e, k in _OTHER_KINDS.items() if name.endswith(e)), None):
            raise file.fault(
                f"must be of a kind that can be trained on, but {name} is {kind}; apply it to the MODEL with the "
                "host's own loader, and train a new adapter on that"
            )
        elif name.endswith(_BESIDE):
            file.beside.append(name)
        elif end is None:
            raise file.fault(f"must hold adapter weights, got {name}; it is no LoRA")
        elif name.removesuffix(end) not in keys:
            file.unfit.append(name)
        else:
            value = tensor.float()
            if not value.isfinite().all():
                raise file.fault(f"must hold finite numbers, but {name} has NaN or inf; it was saved damaged")
            file.layers.setdefault(name.removesuffix(end), {})[_ENDS[end]] = value
    if not file.layers and file.unfit:
        raise file.fault(f"must fit the model, but has {file.unfit[0]}; it was made for another one")
    if not file.layers:
        held = "a text encoder alone" if file.text else "nothing of an adapter"
        raise file.fault(f"must hold an adapter of the network, but holds {held}")
    return file


def _say_what_is_left_out(file: _File) -> None:
    """One line in the log for each part of the file that the adapter does not have."""
    for names, what in (
        (file.text, "of text encoders, which are not trained here"),
        (file.beside, "that change biases, norms or whole weights, which an adapter does not hold"),
        (file.unfit, "of layers that this model does not have"),
    ):
        if names:
            logger.warning("%s: left out %d tensors %s: %s", file.path.name, len(names), what, names[0])


# --- our own files ----------------------------------------------------------------------------------


def _own_config(file: _File, header: Mapping[str, str], module: nn.Module, keys: KeyMap) -> LoRAConfig | None:
    """The settings in the header of a file of ours; None for others, and for one of another form of the network."""
    if "config" not in header or not header.get("format", "").startswith("rollout-trainer"):
        return None
    try:
        config = from_plain(LoRAConfig, json.loads(header["config"])["lora"])
    except (KeyError, TypeError, ValueError) as err:
        raise file.fault(f"must have a readable header, got: {err}; it is damaged") from err
    if not all(len(keys[name]) == 1 and keys[name][0].whole for name in file.layers):
        return None
    try:
        wanted = target_modules(module, config.targets)
    except ValueError:  # its targets are those of another form of the network
        return None
    return config if sorted(wanted) == sorted(keys[name][0].module for name in file.layers) else None


def _ours(file: _File, config: LoRAConfig, keys: KeyMap, weight: Callable[[str], Tensor]) -> AdapterState:
    """The adapter that wrote the file: at the scale of its settings, where files are at scale 1."""
    ends = {"up": "lora_B.weight", "down": "lora_A.weight"} | {name: name for name in _FACTORS}
    tensors: dict[str, Tensor] = {}
    for name, parts in file.layers.items():
        module = keys[name][0].module
        own = {f"{module}.{ends[part]}": value for part, value in parts.items() if part in ends}
        if config.kind == "dora":
            _need(file, name, parts, "up", "down")
            base = weight(module).detach().float().cpu()
            own[f"{module}.{MAGNITUDE}"] = _magnitude(file, name, parts, base, parts["up"], parts["down"])
        tensors |= own
    scale = config.rank / config.alpha if config.alpha else 1.0
    return AdapterState(
        config, {k: v * scale if k.endswith(SCALED_FACTORS) else v for k, v in tensors.items()}
    )


def _need(file: _File, name: str, parts: Mapping[str, Tensor], *needed: str) -> None:
    """Refuse a layer that lacks a part."""
    if missing := [part for part in needed if part not in parts]:
        raise file.fault(f"must be complete, but {name} has no {missing[0]} weight; it was saved damaged")


def _magnitude(
    file: _File, name: str, parts: Mapping[str, Tensor], base: Tensor, up: Tensor, down: Tensor
) -> Tensor:
    """Row norms ``m`` of a DoRA's layer, in peft's shape: as written, else from ``dora_scale``.

    ComfyUI computes ``(W + BA) scale / ||W||``, DoRA is ``m (W + BA) / ||W + BA||``: m = scale ||W + BA|| / ||W||.
    """
    m = parts.get("magnitude")
    if m is None:
        scale = parts.get("dora_scale")
        adapted = base + (up.flatten(1) @ down.flatten(1)).reshape(base.shape)
        m = adapted.flatten(1).norm(dim=1)
        if scale is not None:
            if len(scale) != len(base):
                raise file.fault(
                    f"must scale the rows of its layers, but {name} scales columns; this kind of DoRA cannot be "
                    "trained on here"
                )
            m = scale.flatten() * m / base.flatten(1).norm(dim=1)
    if m.numel() != len(base):
        raise file.fault(f"must fit the model, but {name} has {m.numel()} row norms for {len(base)} rows")
    return _norms(m.flatten(), base)


def _norms(m: Tensor, base: Tensor) -> Tensor:
    """Row norms [out] in the shape that peft gives them."""
    return m if base.ndim == 2 else m.reshape(1, -1, *[1] * (base.ndim - 2))


# --- files of others --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Update:
    """What one layer of the file does: a product of two factors (LoRA), or of two such products (LoHa), at scale 1."""

    place: Place
    pairs: tuple[tuple[Tensor, Tensor], ...]
    """[out, r] and [r, in] each, rows as the file has them."""
    norms: Tensor | None = None
    """dora_scale or magnitudes of its rows, as the file has them."""
    is_scale: bool = False
    """They are ComfyUI's ``dora_scale``."""


def _theirs(file: _File, module: nn.Module, keys: KeyMap, weight: Callable[[str], Tensor]) -> AdapterState:
    """An adapter of scale 1 that acts as the file does."""
    kinds = {_kind(parts): name for name, parts in file.layers.items()}
    if len(kinds) > 1:
        raise file.fault(
            f"must be of one kind, but has {' and '.join(sorted(kinds))}; it cannot be trained on"
        )
    (kind,) = kinds
    if kind == "lokr":
        return _lokr(file, module, keys)
    by_module: dict[str, list[_Update]] = {}
    for name, parts in file.layers.items():
        for place in keys[name]:
            by_module.setdefault(place.module, []).append(_update(file, name, parts, place))
    fused = {name: _joined(file, name, updates, module) for name, updates in sorted(by_module.items())}
    rank = max(pairs[0][1].shape[0] for pairs in fused.values())
    generator = torch.Generator().manual_seed(0)
    dora = any(u.norms is not None for updates in by_module.values() for u in updates)
    tensors: dict[str, Tensor] = {}
    for name, pairs in fused.items():
        base = weight(name).detach().float().cpu() if dora else None
        layer = module.get_submodule(name)
        padded = [_padded(up, down, rank, generator) for up, down in pairs]
        tensors |= _named(name, kind, padded, layer)
        if base is not None:
            tensors[f"{name}.{MAGNITUDE}"] = _joined_norms(file, name, by_module[name], base, padded[0])
    chosen: Any = "dora" if dora else kind
    return AdapterState(LoRAConfig(chosen, rank, float(rank), 0.0, _exactly(fused)), tensors)


def _exactly(modules: Iterable[str]) -> tuple[str, ...]:
    """Targets that are these modules and no other."""
    return tuple(f"^{re.escape(name)}$" for name in sorted(modules))


def _kind(parts: Mapping[str, Tensor]) -> str:
    """Kind of a layer's adapter, by the names of its tensors."""
    for prefix, kind in (("hada_", "loha"), ("lokr_", "lokr")):
        if any(part.startswith(prefix) for part in parts):
            return kind
    return "lora"


def _update(file: _File, name: str, parts: Mapping[str, Tensor], place: Place) -> _Update:
    """One layer of the file at scale 1, as matrices."""
    alpha = parts.get("alpha")
    norms = parts.get("magnitude", parts.get("dora_scale"))
    if _kind(parts) == "loha":
        _need(file, name, parts, "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        if "hada_t1" in parts or "dora_scale" in parts:
            what = "a Tucker decomposition" if "hada_t1" in parts else "the scales of a DoRA"
            raise file.fault(f"must be a plain LoHa, but {name} has {what}; it cannot be trained on")
        first = (parts["hada_w1_a"], parts["hada_w1_b"])
        second = (parts["hada_w2_a"], parts["hada_w2_b"])
    else:
        _need(file, name, parts, "up", "down")
        first, second = (parts["up"].flatten(1), _with_mid(parts)), None
    scale = 1.0 if alpha is None else float(alpha.flatten()[0]) / first[1].shape[0]
    first = (first[0] * scale, first[1])
    pairs = tuple(pair for pair in (first, second) if pair is not None)
    return _Update(place, pairs, norms, "magnitude" not in parts)


def _with_mid(parts: Mapping[str, Tensor]) -> Tensor:
    """The down factor [r, in ...] with the kernel of a Tucker-decomposed convolution (``lora_mid``) multiplied in."""
    down, mid = parts["down"], parts.get("mid")
    if mid is None:
        return down.flatten(1)
    return torch.einsum("p q ..., q i -> p i ...", mid, down.flatten(1)).flatten(1)


def _joined(
    file: _File, name: str, updates: list[_Update], module: nn.Module
) -> tuple[tuple[Tensor, Tensor], ...]:
    """The factors of one of our layers, [out, r] and [r, in], of all that the file has for parts of it."""
    weight: Any = module.get_submodule(name)
    out, inner = _sizes(weight)
    joined = []
    for pair in range(len(updates[0].pairs)):
        ups, downs = [], []
        for update in updates:
            up, down = update.pairs[pair]
            up = _rows(up, update.place)
            first, length = update.place.rows or (0, out)
            if up.shape[0] != length or down.shape[1] != inner or up.shape[1] != down.shape[0]:
                raise file.fault(
                    f"must fit the model, but has {list(up.shape)} and {list(down.shape)} for {name}, whose weight "
                    f"is [{out}, {inner}]; it was made for another one"
                )
            whole = up.new_zeros(out, up.shape[1])
            whole[first : first + length] = up
            ups.append(whole)
            downs.append(down)
        joined.append((torch.cat(ups, 1), torch.cat(downs)))
    return tuple(joined)


def _sizes(layer: Any) -> tuple[int, int]:
    """Rows and columns of a layer's weight as a matrix."""
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels, layer.in_channels // layer.groups * math.prod(layer.kernel_size)
    return int(layer.out_features), int(layer.in_features)


def _rows(tensor: Tensor, place: Place) -> Tensor:
    """The rows of the file's layer that belong to `place`, in our order."""
    if place.of is not None:
        tensor = tensor[place.of[0] : place.of[0] + place.of[1]]
    if place.swapped:
        tensor = torch.cat(tensor.chunk(2)[::-1])
    return tensor


def _padded(up: Tensor, down: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Factors of rank `rank` with the same product: new columns of `up` are 0, new rows of `down` can learn."""
    more = rank - down.shape[0]
    if not more:
        return up, down
    bound = 1 / math.sqrt(down.shape[1])  # as peft begins
    fresh = (torch.rand(more, down.shape[1], generator=generator) * 2 - 1) * bound
    return torch.cat([up, up.new_zeros(up.shape[0], more)], 1), torch.cat([down, fresh])


def _named(name: str, kind: str, pairs: list[tuple[Tensor, Tensor]], layer: nn.Module) -> dict[str, Tensor]:
    """A layer's factors under peft's names and in its shapes."""
    if kind == "loha":
        (w1_a, w1_b), (w2_a, w2_b) = pairs
        parts = {"hada_w1_a": w1_a, "hada_w1_b": w1_b, "hada_w2_a": w2_a, "hada_w2_b": w2_b}
        return {f"{name}.{part}": value.contiguous() for part, value in parts.items()}
    ((up, down),) = pairs
    if isinstance(layer, nn.Conv2d):
        down = down.reshape(len(down), layer.in_channels // layer.groups, *layer.kernel_size)
        up = up.reshape(*up.shape, 1, 1)
    return {f"{name}.lora_A.weight": down.contiguous(), f"{name}.lora_B.weight": up.contiguous()}


def _joined_norms(
    file: _File, name: str, updates: list[_Update], base: Tensor, pair: tuple[Tensor, Tensor]
) -> Tensor:
    """Row norms of one of our layers: those of the file, and where it has none, those that change nothing."""
    up, down = pair
    m = (base.flatten(1) + up @ down).norm(dim=1)
    for update in updates:
        if update.norms is None:
            continue
        first, length = update.place.rows or (0, len(base))
        given = update.norms
        if update.is_scale and given.ndim > 1 and given.shape[0] == 1 != given.shape[1]:
            raise file.fault(
                f"must scale the rows of its layers, but {name} has scales of columns; this kind of DoRA cannot be "
                "trained on here"
            )
        given = _rows(given.flatten(), update.place)
        if len(given) != length:
            raise file.fault(
                f"must fit the model, but has {len(given)} row norms for {length} rows of {name}"
            )
        rows = slice(first, first + length)
        m[rows] = given * m[rows] / base.flatten(1)[rows].norm(dim=1) if update.is_scale else given
    return _norms(m, base)


# --- LoKr of others ---------------------------------------------------------------------------------


def _lokr(file: _File, module: nn.Module, keys: KeyMap) -> AdapterState:
    """A LoKr of scale 1 whose factors have the sizes that peft gives them at some factor and rank."""
    factors: dict[str, dict[str, Tensor]] = {}
    for name, parts in file.layers.items():
        places = keys[name]
        if len(places) != 1 or not places[0].whole or "dora_scale" in parts:
            raise file.fault(
                f"must have a layer of the model for each of its own, and no DoRA, to be trained on as LoKr, but "
                f"{name} is not so; apply it to the MODEL with the host's own loader"
            )
        factors[places[0].module] = _kronecker(file, name, parts)
    sizes = {name: _split(module, name) for name in factors}
    factor = _common_factor(file, factors, sizes)
    rank = max(_lokr_rank(parts) for parts in factors.values())
    tensors: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    for name, parts in sorted(factors.items()):
        w2 = _second(parts, rank, sizes[name], generator)
        tensors |= {
            f"{name}.{part}": value.contiguous() for part, value in {"lokr_w1": parts["w1"], **w2}.items()
        }
    config = LoRAConfig("lokr", rank, float(rank), 0.0, _exactly(factors), factor=factor)
    return AdapterState(config, tensors)


def _kronecker(file: _File, name: str, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``w1`` at scale 1, and ``w2`` or its two factors."""
    own = {part.removeprefix("lokr_"): value for part, value in parts.items() if part.startswith("lokr_")}
    for whole in ("w1", "w2"):
        if whole not in own:
            _need(file, name, parts, f"lokr_{whole}_a", f"lokr_{whole}_b")
    ranks = [len(own[f"{whole}_b"]) for whole in ("w1", "w2") if whole not in own]
    alpha = parts.get("alpha")
    scale = float(alpha.flatten()[0]) / ranks[-1] if ranks and alpha is not None else 1.0
    w1 = own["w1"] if "w1" in own else own["w1_a"] @ own["w1_b"]
    if "w2" in own:
        return {"w1": w1 * scale, "w2": own["w2"]}
    if "t2" in own:
        w2 = torch.einsum("i j ..., j r, i p -> p r ...", own["t2"], own["w2_b"], own["w2_a"])
        return {"w1": w1 * scale, "w2": w2}
    return {"w1": w1 * scale, "w2_a": own["w2_a"], "w2_b": own["w2_b"]}


def _split(module: nn.Module, name: str) -> tuple[int, int, tuple[int, ...]]:
    """Channels out and in, and kernel, of a layer."""
    layer: Any = module.get_submodule(name)
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels, layer.in_channels // layer.groups, tuple(layer.kernel_size)
    return int(layer.out_features), int(layer.in_features), ()


def _common_factor(
    file: _File,
    factors: Mapping[str, Mapping[str, Tensor]],
    sizes: Mapping[str, tuple[int, int, tuple[int, ...]]],
) -> int:
    """The factor with which peft splits every layer as the file does."""

    def fits(factor: int, name: str) -> bool:
        out, inner, _ = sizes[name]
        rows, columns = factorization(out, factor), factorization(inner, factor)
        w2 = factors[name].get("w2")
        rest = (len(factors[name]["w2_a"]), None) if w2 is None else w2.shape[:2]
        first = tuple(factors[name]["w1"].shape) == (rows[0], columns[0])
        return first and rest[0] == rows[1] and rest[1] in (None, columns[1])

    tried = {-1, *(size for parts in factors.values() for size in parts["w1"].shape)}
    for factor in sorted(tried):
        if all(fits(factor, name) for name in factors):
            return factor
    name = next(iter(factors))
    raise file.fault(
        f"must split its layers as LyCORIS does with one factor, but {name} has {list(factors[name]['w1'].shape)} for "
        f"a weight of {list(sizes[name][:2])}; it cannot be trained on"
    )


def _lokr_rank(parts: Mapping[str, Tensor]) -> int:
    """The rank at which peft keeps ``w2`` as the file has it: in two factors, or whole from half its longer side on."""
    if "w2" in parts:
        return max(1, math.ceil(max(parts["w2"].shape[:2]) / 2))
    return len(parts["w2_b"])


def _second(
    parts: Mapping[str, Tensor], rank: int, size: tuple[int, int, tuple[int, ...]], generator: torch.Generator
) -> dict[str, Tensor]:
    """``w2`` as peft keeps it at `rank`."""
    if "w2" in parts:
        return {"lokr_w2": parts["w2"]}
    a, b = parts["w2_a"], parts["w2_b"].flatten(1)
    inner = size[1] // parts["w1"].shape[1]
    if rank >= max(len(a), inner) / 2:
        return {"lokr_w2": (a @ b).reshape(len(a), inner, *size[2])}
    return dict(zip(("lokr_w2_a", "lokr_w2_b"), _padded(a, b, rank, generator), strict=True))
