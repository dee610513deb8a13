"""Networks of the sizes that people train, with random weights or with shapes alone, as the trainer's model sources.

From the classes of diffusers and the published configurations; nothing is downloaded. For memory and speed the values
of the weights do not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import diffusers
import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rollout_trainer.samplers.schedules import FlowSchedule, TableSchedule
from rollout_trainer.training.data.dataset import Batch, Bucket, LatentDataset
from rollout_trainer.training.models.diffusers import ATTENTION, DiffusersModel, TokenLimits
from rollout_trainer.training.models.families import Flux, StableDiffusion3, StableDiffusionXL

BLOCK = (1 << 20) + 7
"""Random values that are made: of no matrix's size, so that no two rows are alike."""


class Random(DiffusersModel):
    """A source around a network alone: no folder, no encoders."""

    pipelines = ()
    encoders: ClassVar[TokenLimits] = {}

    def encode_caption(self, caption: str) -> dict[str, Tensor]:
        """Not here."""
        raise NotImplementedError

    def output(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """By the subclass."""
        raise NotImplementedError


def grid(rows: int, columns: int, like: Tensor) -> Tensor:
    """[rows * columns, 4] places of tokens, as Flux 2 counts them."""
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    return F.pad(places, (1, 1)).to(like.device)


class Flux2(Random):
    """Flux 2 and Klein."""

    def output(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """Velocity."""
        rows, columns = x.shape[2:]
        text = cond["context"]
        guided = self.module.config.guidance_embeds
        tokens = self.module(
            x.flatten(2).mT.to(self.dtype), text, sigma, grid(rows, columns, x), grid(1, text.shape[1], x),
            torch.full_like(sigma, 3.5) if guided else None, return_dict=False,
        )[0]  # fmt: skip
        return tokens.mT.unflatten(2, (rows, columns))


class QwenImage(Random):
    """Qwen-Image."""

    def output(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """Velocity."""
        rows, columns = x.shape[2] // 2, x.shape[3] // 2
        tokens = self.module(
            hidden_states=F.pixel_unshuffle(x, 2).flatten(2).mT.to(self.dtype), timestep=sigma,
            encoder_hidden_states=cond["context"], img_shapes=[[(1, rows, columns)]] * len(x), return_dict=False,
        )[0]  # fmt: skip
        return F.pixel_shuffle(tokens.mT.unflatten(2, (rows, columns)), 2)


class ZImage(Random):
    """Z-Image."""

    def output(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """Velocity."""
        pictures = [row.unsqueeze(1).to(self.dtype) for row in x]
        out = self.module(pictures, 1 - sigma, list(cond["context"]), return_dict=False)[0]
        return -torch.stack([row.squeeze(1) for row in out])


class Wan(Random):
    """Wan 2.2, one frame."""

    def output(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """Velocity."""
        return self.module(x[:, :, None].to(self.dtype), sigma * 1000, cond["context"], return_dict=False)[0][
            :, :, 0
        ]


@dataclass(frozen=True)
class Model:
    """A model by its published configuration."""

    name: str
    family: type[DiffusersModel]
    build: type[nn.Module]
    config: dict[str, Any]
    depths: tuple[str, ...]
    """Options that say how many blocks of a kind there are: what is needed grows in proportion to each."""
    channels: int
    scale: int
    """Pixels per latent position."""
    cond: dict[str, tuple[int, ...]]
    prediction: str = "flow"
    targets: tuple[str, ...] = (ATTENTION,)

    @property
    def swaps(self) -> bool:
        """Whether its weights can be fetched block by block: see `training.models.swap.can_swap`."""
        return not issubclass(self.build, diffusers.UNet2DConditionModel)

    def source(self, make: Callable[[], nn.Module], device: str, dtype: torch.dtype) -> DiffusersModel:
        """The trainer's view of a network."""
        own = type(
            f"Random{self.family.__name__}",
            (self.family,),
            {"scale_factor": self.scale, "fingerprint": "random", "decoder": None},
        )
        source = own.__new__(own)
        source.name, source.device, source.dtype, source.timesteps = (
            self.name,
            torch.device(device),
            dtype,
            1000,
        )
        source.prediction = self.prediction
        flow = self.prediction == "flow"
        source.schedule = (
            FlowSchedule(3.0) if flow else TableSchedule(torch.linspace(0.03, 14, 1000).double())
        )
        source.default_lora_targets = self.targets
        source.module = make().eval().requires_grad_(False)
        source.weights, source.swap = "full", None
        return source

    def on_paper(
        self, depths: tuple[int, ...] | None = None, dtype: torch.dtype = torch.bfloat16
    ) -> DiffusersModel:
        """With shapes alone; `depths`: other numbers of blocks."""
        config = self.config | dict(zip(self.depths, depths or (), strict=False))

        def make() -> nn.Module:
            with FakeTensorMode(allow_non_fake_inputs=True), defaults(dtype):
                return self.build(**config)

        return self.source(make, "cpu", dtype)

    def random(
        self,
        device: str,
        dtype: torch.dtype = torch.bfloat16,
        change: Callable[[nn.Module], None] | None = None,
    ) -> DiffusersModel:
        """With random weights; `change` the network before its weights take memory."""

        def make() -> nn.Module:
            with torch.device("meta"), defaults(dtype):
                network = self.build(**self.config)
            if change is not None:
                change(network)
            return filled(network, device)

        return self.source(make, device, dtype)

    def batch(self, pixels: int, size: int = 1, tokens: int | None = None) -> Batch:
        """Random latents and conditioning; `tokens`: of text, other than usual."""
        cond = {
            name: torch.randn(size, *((tokens, *shape[1:]) if tokens and len(shape) == 2 else shape))
            for name, shape in self.cond.items()
        }
        side = pixels // self.scale
        return Batch(torch.randn(size, self.channels, side, side), cond, None, torch.arange(size))

    def dataset(self, pixels: int, n: int = 2, tokens: int | None = None) -> LatentDataset:
        """The same as a dataset."""
        batch = self.batch(pixels, n, tokens)
        names = tuple(map(str, range(n)))
        bucket = Bucket(batch.x0, batch.cond, None, torch.ones(n, dtype=torch.long), names, names)
        return LatentDataset((bucket,), {}, fingerprint="random")


@contextmanager
def defaults(dtype: torch.dtype) -> Iterator[None]:
    """New weights are of this type inside."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def filled(network: nn.Module, device: str) -> nn.Module:
    """A network of the meta device, with random weights on another: one random block again and again, which is quick.

    Matrices in fewer bits get random codes and one scale, all other tables zeros.
    """
    network.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    blocks: dict[torch.dtype, Tensor] = {}
    for weight in network.parameters():
        if weight.dtype not in blocks:
            values = torch.empty(BLOCK, dtype=weight.dtype, device=device)
            blocks[weight.dtype] = values.normal_(0, 0.02, generator=generator)
        repeat(blocks[weight.dtype], weight.data)
    codes = torch.empty(BLOCK, dtype=torch.uint8, device=device).random_(generator=generator)
    codes.bitwise_and_(0xBF)  # of float8, numbers below 2
    for name, table in network.named_buffers():
        if name.endswith("codes"):
            repeat(codes, table.view(torch.uint8))
        else:
            table.fill_(0.01 if name.endswith("scale") else 0)
    for part in network.modules():  # tables of positions that are no buffers
        for name, table in vars(part).items():
            if isinstance(table, Tensor) and table.is_meta:
                setattr(part, name, torch.ones_like(table, device=device))
    return network


def repeat(block: Tensor, into: Tensor) -> None:
    """Fill a tensor with a block's values, over and over."""
    flat = into.view(-1)
    whole = len(flat) // len(block) * len(block)
    flat[:whole].view(-1, len(block)).copy_(block)
    flat[whole:].copy_(block[: len(flat) - whole])


@contextmanager
def adapters_of_shapes() -> Iterator[None]:
    """Adapters can be put on networks of shapes inside: torch cannot move such weights, and they need not be moved."""
    module_to, move = nn.Module.to, BaseTunerLayer._move_adapter_to_device_of_base_layer
    nn.Module.to = lambda self, *_args, **_options: self  # type: ignore[method-assign]
    BaseTunerLayer._move_adapter_to_device_of_base_layer = lambda *_args, **_options: None
    try:
        yield
    finally:
        nn.Module.to = module_to  # type: ignore[method-assign]
        BaseTunerLayer._move_adapter_to_device_of_base_layer = move


SD3 = {"sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "attention_head_dim": 64,
       "joint_attention_dim": 4096, "pooled_projection_dim": 2048, "qk_norm": "rms_norm"}  # fmt: skip
SDXL = {
    "sample_size": 128, "in_channels": 4, "out_channels": 4, "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "layers_per_block": 2,
    "cross_attention_dim": 2048, "transformer_layers_per_block": [1, 2, 10], "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
KLEIN = {"axes_dims_rope": (32, 32, 32, 32), "guidance_embeds": False}
MODELS = {
    model.name: model
    for model in (
        Model("SDXL", StableDiffusionXL, diffusers.UNet2DConditionModel, SDXL, (), 4, 8,
              {"context": (77, 2048), "pooled": (1280,)}, "epsilon", StableDiffusionXL.default_lora_targets),
        Model("SD3.5 large", StableDiffusion3, diffusers.SD3Transformer2DModel,
              SD3 | {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432,
                     "pos_embed_max_size": 192},
              ("num_layers",), 16, 8, {"context": (333, 4096), "pooled": (2048,)}),
        Model("Klein 4B", Flux2, diffusers.Flux2Transformer2DModel,
              KLEIN | {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24,
                       "joint_attention_dim": 7680},
              ("num_layers", "num_single_layers"), 128, 16, {"context": (512, 7680)},
              targets=(r"attn\.(to_|add_).*$",)),
        Model("Klein 9B", Flux2, diffusers.Flux2Transformer2DModel,
              KLEIN | {"num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32,
                       "joint_attention_dim": 12288},
              ("num_layers", "num_single_layers"), 128, 16, {"context": (512, 12288)},
              targets=(r"attn\.(to_|add_).*$",)),
        Model("Z-Image 6B", ZImage, diffusers.ZImageTransformer2DModel, {"n_layers": 30}, ("n_layers",), 16, 8,
              {"context": (256, 2560)}, targets=(r"^layers\.\d+\.attention\.(to_[qkv]|to_out\.0)$",)),
        Model("Wan 2.2 5B, 1 frame", Wan, diffusers.WanTransformer3DModel,
              {"patch_size": (1, 2, 2), "num_attention_heads": 24, "in_channels": 48, "out_channels": 48,
               "ffn_dim": 14336, "num_layers": 30}, ("num_layers",), 48, 16, {"context": (512, 4096)},
              targets=(r"attn[12]\.(to_[qkv]|to_out\.0)$",)),
        Model("Wan 2.2 14B, 1 frame", Wan, diffusers.WanTransformer3DModel,
              {"patch_size": (1, 2, 2), "num_attention_heads": 40, "in_channels": 16, "out_channels": 16,
               "ffn_dim": 13824, "num_layers": 40}, ("num_layers",), 16, 8, {"context": (512, 4096)},
              targets=(r"attn[12]\.(to_[qkv]|to_out\.0)$",)),
        Model("Flux 12B", Flux, diffusers.FluxTransformer2DModel,
              {"guidance_embeds": True, "num_layers": 19, "num_single_layers": 38}, ("num_layers", "num_single_layers"),
              16, 8, {"context": (512, 4096), "pooled": (768,)}),
        Model("Qwen-Image 20B", QwenImage, diffusers.QwenImageTransformer2DModel, {"num_layers": 60}, ("num_layers",),
              16, 8, {"context": (256, 3584)}),
    )
}  # fmt: skip


VAES = {"SDXL": 4, "SD3.5 large": 16, "Flux 12B": 16}
"""Channels of the autoencoders of models that are loaded from diffusers folders; others' are ComfyUI's affair."""


def autoencoder(model: Model) -> nn.Module:
    """Its autoencoder; of models that are not loaded from folders a narrow one."""
    usual = model.name in VAES
    blocks = model.scale.bit_length()
    own = VAES.get(model.name) == 4
    return diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512) if usual else (32,) * blocks, layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
        latent_channels=model.channels, sample_size=1024, use_quant_conv=own, use_post_quant_conv=own,
    ).eval().requires_grad_(False)  # fmt: skip


def small() -> Model:
    """Klein of two narrow blocks of each sort: for tests."""
    model = MODELS["Klein 4B"]
    narrow = {"num_attention_heads": 2, "joint_attention_dim": 64} | dict.fromkeys(model.depths, 2)
    return replace(model, config=model.config | narrow, cond={"context": (16, 64)})
