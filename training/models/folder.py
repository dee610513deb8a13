"""A diffusers pipeline folder on disk: index, parts, digest. Reads local safetensors, downloads nothing."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...messages import one_line
from ..files import file_sha256

LIBRARIES = ("diffusers", "transformers")
"""What a model_index.json may name; anything else would be code from elsewhere."""
CLASSES = (
    "AutoencoderKL", "AutoencoderTiny", "CLIPTextModel", "CLIPTextModelWithProjection", "FluxTransformer2DModel",
    "SD3Transformer2DModel", "T5EncoderModel", "UNet2DConditionModel",
)  # fmt: skip
"""Networks that a folder may ask for: it chooses what runs here, so only what a family of ours can have."""
TOKENIZERS = (
    "CLIPTokenizer", "CLIPTokenizerFast", "PreTrainedTokenizerFast", "T5Tokenizer", "T5TokenizerFast",
    "TokenizersBackend",
)  # fmt: skip
"""The same of tokenizers."""
DIGESTED = (".safetensors", ".json", ".txt", ".model", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5")
"""Kinds of files that decide what a model computes, those that are never read included."""

Network = Any
"""A diffusers or transformers network: an `nn.Module` with `config`, `device` and `dtype`."""


@dataclass(frozen=True)
class PipelineFolder:
    """A diffusers pipeline folder and its ``model_index.json``."""

    path: Path
    index: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> PipelineFolder:
        """Read the index.

        Raises:
            ValueError: there is no such folder, or no readable index in it.
        """
        fault = cls(path, {}).fault
        if not path.is_dir():
            raise fault("it must exist, but there is no such folder")
        try:
            index = json.loads((path / "model_index.json").read_text(encoding="utf-8"))
        except FileNotFoundError as err:
            raise fault("it must be a diffusers pipeline, but has no model_index.json") from err
        except (OSError, ValueError, RecursionError) as err:
            raise fault(f"model_index.json must be valid JSON, but it is not: {one_line(err):.150}") from err
        if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
            raise fault("model_index.json must name the pipeline, but has no _class_name")
        return cls(path, index)

    def fault(self, text: str) -> ValueError:
        """The error to raise for a fault of this folder."""
        return ValueError(f"model folder {self.path}: {text}")

    @property
    def pipeline(self) -> str:
        """Class name of the pipeline."""
        return str(self.index["_class_name"])

    def has(self, name: str) -> bool:
        """Whether the pipeline has the component `name`."""
        entry = self.index.get(name)
        return isinstance(entry, list) and len(entry) == 2 and entry[1] is not None

    def config(self, name: str) -> dict[str, Any]:
        """The settings of a component that has no weights (a scheduler).

        Raises:
            ValueError: the component or its file is missing or broken.
        """
        file = self._component(name) / f"{name}_config.json"
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as err:
            raise self.fault(f"{name} must have a readable {file.name}: {one_line(err):.150}") from err
        return dict(config)

    def tokenizer(self, name: str) -> Any:
        """Load the tokenizer `name`.

        Raises:
            ValueError: it is missing or cannot be read.
        """
        return self._load(name, {})

    def network(self, name: str, dtype: torch.dtype) -> Network:
        """Load the network `name`, frozen, in evaluation mode, its weights as `dtype`.

        Raises:
            ValueError: it is missing, has no safetensors weights, or cannot be read.
        """
        # Half-precision copies are often all that is there: diffusion_pytorch_model.fp16.safetensors.
        plain = any(f.name.count(".") == 1 for f in self.weights(name))
        options = {"use_safetensors": True, "torch_dtype": dtype, "variant": None if plain else "fp16"}
        return self._load(name, options).requires_grad_(False).eval()

    def weights(self, name: str) -> list[Path]:
        """The weight files of the network `name`.

        Raises:
            ValueError: it is missing, or has no safetensors weights.
        """
        files = sorted(self._component(name).glob("*.safetensors"))
        if not files:
            raise self.fault(f"{name} must have .safetensors weights, found none")
        for index in sorted(self._component(name).glob("*.index.json")):
            self._check_shards(name, index)
        return files

    def _check_shards(self, name: str, index: Path) -> None:
        """Refuse an index whose parts are no safetensors files beside it: others may run code as they are read."""
        try:
            shards = {
                str(shard) for shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
            raise self.fault(f"{name} must have a readable {index.name}, but it is not") from err
        if index.name.endswith(".safetensors.index.json"):
            wrong = sorted(s for s in shards if not s.endswith(".safetensors") or Path(s).name != s)
            if wrong:
                raise self.fault(
                    f"{name} must have .safetensors weights alone, but its index names {wrong[0]!r:.80}"
                )

    def _component(self, name: str) -> Path:
        if not self.has(name) or not (self.path / name).is_dir():
            raise self.fault(f"it must hold a {name}, but has none")
        return self.path / name

    def _load(self, name: str, options: Mapping[str, Any]) -> Any:
        folder = self._component(name)
        library, kind = self.index[name]
        if library not in LIBRARIES:
            raise self.fault(f"{name} must come from {' or '.join(LIBRARIES)}, got {library!r:.80}")
        known = TOKENIZERS if name.startswith("tokenizer") else CLASSES
        if kind not in known:
            raise self.fault(f"{name} must be one of {', '.join(known)}, got {kind!r:.80}")
        # Never the code that a folder brings: without this, transformers asks on the terminal whether to run it.
        own = {"trust_remote_code": False} if library == "transformers" else {}
        try:
            loader = getattr(importlib.import_module(library), kind)
            with _no_progress_bars():
                return loader.from_pretrained(str(folder), local_files_only=True, **own, **options)
        except Exception as err:  # the libraries raise anything from OSError to KeyError on a broken folder
            raise self.fault(f"{name} ({kind}) cannot be read: {one_line(err):.150}") from err

    def digest(self) -> str:
        """Hex digest (16 digits) of every weight and settings file in the folder."""
        files = sorted(f for f in self.path.rglob("*") if f.suffix in DIGESTED)
        total = hashlib.sha256()
        for file in files:
            total.update(file.relative_to(self.path).as_posix().encode())
            total.update(bytes.fromhex(file_sha256(file)))
        return total.hexdigest()[:16]


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Without this, transformers draws one for every network, across those of the host."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
