"""Train a LoRA on a folder of captioned pictures, without a graph: the quick start as a program.

Needs the package: ``pip install -e .`` in this checkout. Then ``python demo/train_folder.py --out out/example``.
"""

import argparse
from pathlib import Path

from PIL import Image

import rollout_trainer.training as rt

ROOT = Path(__file__).resolve().parent.parent
TARGETS = (r"attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)$", r"ff(_context)?\.net\.(0\.proj|2)$")
PROMPT = "grinning face, blob style, white background"


def show(done: rt.StepReport) -> None:
    """A line every 20 steps."""
    if done.step % 20 == 0:
        print(f"step {done.step}: loss {done.loss:.4f}, {done.steps_per_second:.1f} steps/s", flush=True)


def main() -> None:
    """Load, encode, train, save, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "demo/model", help="diffusers pipeline folder")
    parser.add_argument(
        "--data", type=Path, default=ROOT / "demo/data", help="pictures, NAME.txt beside each"
    )
    parser.add_argument("--out", type=Path, default=Path("out/example"))
    parser.add_argument("--steps", type=int, default=300)
    given = parser.parse_args()

    model = rt.load_diffusers(given.model)
    data = rt.encode(rt.read_image_folder(given.data), model, cache_dir=given.out / "cache")
    off = rt.ReflexFlowConfig("off")
    config = rt.TrainConfig(
        steps=given.steps,
        batch_size=8,
        caption_dropout=0.05,
        lora=rt.LoRAConfig(rank=8, alpha=8.0, targets=TARGETS),
        optimizer=rt.OptimizerConfig(
            lr=2e-3, weight_decay=0.0, schedule="cosine", warmup_steps=10, final_lr=0.1
        ),
        rollout=rt.RolloutConfig(3, probability=0.5, steps_per_trajectory=20, reflexflow=off),
    )
    with rt.starting(given.out / "runs", "example", model, data, config) as stage:
        run = stage.train(given.steps, show)
    print("LoRA:", rt.save_lora(run, given.out, "example"))
    (picture,) = rt.sample(run.model, [PROMPT], cfg=2.0, seed=1)
    pixels = (picture.movedim(0, -1) * 255).round().byte().numpy()  # [3, H, W] -> [H, W, 3]
    Image.fromarray(pixels).save(given.out / "example.png")


if __name__ == "__main__":
    main()
