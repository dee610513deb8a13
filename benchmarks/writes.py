"""Print what it costs that ComfyUI's networks write into tensors that a backward pass needs.

    COMFYUI_PATH=... PACK_PARENT=... <the host's python> benchmarks/writes.py [--hidden 768] [--tokens 1024] [--turns 9]

PACK_PARENT holds the pack under the name rollout_trainer. A random Flux of middle size does forward and backward passes
with gradients for its inputs and for one matrix of each block, in three ways that take turns: as if it wrote nowhere
(``x += y`` makes a new tensor), with copies for the layers whose inputs are overwritten, as it is trained, and under
autograd's own watch over every operation, which only networks get that need it. Printed is the median of the processor
time within a turn, as a ratio to the first.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--hidden", type=int, default=768, help="width, a multiple of 128")
parser.add_argument("--tokens", type=int, default=1024, help="of the picture, a square number")
parser.add_argument("--turns", type=int, default=9)
asked = parser.parse_args()
HERE = Path(__file__).resolve().parent
sys.path[:0] = [os.environ["PACK_PARENT"], os.environ["COMFYUI_PATH"], str(HERE.parent / "tests" / "host")]
sys.argv = [sys.argv[0], "--cpu"]
import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import tiny_families  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from rollout_trainer.host.comfyui.trainable import differentiable_kernels, in_training  # noqa: E402
from rollout_trainer.training.models.differentiable import given_copies, overwritten  # noqa: E402

torch.set_num_threads(1)


@contextmanager
def no_writes() -> Iterator[None]:
    """``x += y`` makes a new tensor."""
    own = Tensor.__iadd__
    Tensor.__iadd__ = Tensor.__add__  # type: ignore[method-assign]
    try:
        yield
    finally:
        Tensor.__iadd__ = own  # type: ignore[method-assign]


def flux(hidden: int) -> torch.nn.Module:
    """Two double and four single blocks of that width, in float32, with random weights."""
    sizes = {"hidden_size": hidden, "num_heads": hidden // 128, "depth": 2, "depth_single_blocks": 4}
    tiny = tiny_families.FAMILIES["flux_dev"]
    tiny_families.FAMILIES["flux_dev"] = tiny_families.Tiny(
        tiny.config, tiny.unet | sizes, tiny.latent, tiny.width
    )
    with torch.inference_mode(False):
        network = tiny_families.known(tiny_families.FAMILIES["flux_dev"], tiny.unet | sizes, torch.float32)
        module = network.diffusion_model
        with torch.no_grad():
            tiny_families.fill(module, tiny.config, torch.Generator().manual_seed(0))
    module.requires_grad_(False)
    for name, weight in module.named_parameters():
        weight.requires_grad_(name.endswith(("img_attn.proj.weight", "linear1.weight")))
    return module


def main() -> None:
    """Measure in turns, and print the table."""
    module, side = flux(asked.hidden), 2 * int(asked.tokens**0.5)
    g = torch.Generator().manual_seed(1)
    x = torch.randn(1, 16, side, side, generator=g)
    given = torch.randn(1, 64, 48, generator=g), torch.randn(1, 32, generator=g)

    def forward() -> Tensor:
        out: Tensor = module(x, torch.tensor([0.5]), given[0], y=given[1], guidance=torch.tensor([3.5]))
        return out

    def step() -> None:
        forward().square().mean().backward()

    with torch.enable_grad():
        layers = overwritten(module, forward)
    ways: dict[str, Callable[[], AbstractContextManager[object]]] = {
        "as if it wrote nowhere": no_writes,
        f"copies for {len(layers)} layers, as it is trained": lambda: given_copies(layers),
        "autograd watches every operation": torch.autograd.graph.allow_mutation_on_saved_tensors,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(asked.turns + 1):
        for name, way in ways.items():
            with way() or nullcontext():
                begin = time.process_time()
                step()
                if turn:  # the first warms up
                    seconds[name].append(time.process_time() - begin)
            module.zero_grad(set_to_none=True)
    first = next(iter(ways))
    print(
        f"Flux, width {asked.hidden}, {asked.tokens} + 64 tokens, {asked.turns} turns\n\n| | s | ratio |\n|---|---|---|"
    )
    for name, own in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(own, seconds[first], strict=True))
        print(f"| {name} | {statistics.median(own):.2f} | {ratio:.3f} |")


if __name__ == "__main__":
    with in_training(), differentiable_kernels():
        main()
