"""The graphs of `workflows/` that train a large model or compare solvers, for `save_workflow` to lay out and save.

``python tools/make_workflows.py [NAME ...]`` writes those named, or all of them, as the front end saves them.
What the families share is written once; what is theirs, and why, stands in their functions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "host")]

from prompt_builder import Link, PromptBuilder  # noqa: E402
from save_workflow import front_end, lay_out_again, save  # noqa: E402

GREEN, BLUE, BROWN = ["#232", "#353"], ["#223", "#335"], ["#432", "#653"]
BYPASSED = 4
HUGGING_FACE = "https://huggingface.co/"
CHANGE = (
    "**Change** the folder in 2 (`cat.png` beside `cat.txt`), *trigger_word* if the captions have none, "
    "the prompt in 6."
)
STOP = "Stop at any time: the run is saved, *Resume Training* goes on."
PROMPT = "a cat with a wizard hat, blob style, white background"
Item = Any
"""A node id, a pair of a node id and its height, or a note."""


class Sheet(PromptBuilder):
    """A graph with titles and colours."""

    def put(
        self,
        class_type: str,
        title: str = "",
        color: Sequence[str] = (),
        mode: int = 0,
        models: Sequence[tuple[str, str, str]] = (),
        **inputs: Any,
    ) -> Link:
        """Add a node; `models`: name, folder and place of the files that it names."""
        node, slot = self.add(class_type, **inputs)
        files = [{"name": n, "url": HUGGING_FACE + place, "directory": d} for n, d, place in models]
        own = {"title": title, "color": color, "mode": mode, "models": files}
        self.prompt[node]["_meta"] = {name: value for name, value in own.items() if value}
        return [node, slot]


def note(text: str, height: int) -> Item:
    """A note of that many pixels; its title is the first line."""
    return {"title": text.split("\n")[0].lstrip("# "), "text": text, "height": height}


def group(title: str, *items: Link | Item) -> dict[str, Any]:
    """Nodes one below the other; a pair of a link and a number is a node of that height."""

    def item(given: Any) -> Item:
        if isinstance(given, tuple):
            return [given[0][0], given[1]]
        return given[0] if isinstance(given, list) else given

    return {"title": title, "items": [item(given) for given in items]}


def columns(sheet: Sheet, *given: tuple[int, list[dict[str, Any]]]) -> dict[str, Any]:
    """The graph with its layout, as `save` takes it."""
    laid = [{"width": width, "groups": groups} for width, groups in given]
    return {**sheet.prompt, "_extra": {"columns": laid}}


# -- training a MODEL of ComfyUI ---------------------------------------------------------------------


def lora_workflow(
    sheet: Sheet,
    base: tuple[Link, Link, Link],
    loaders: Sequence[Link],
    about: Item,
    *,
    name: str,
    resolution: int,
    rollouts: Link,
    settings: Sequence[tuple[str, Link]],
    train: Mapping[str, Any],
    latent: Callable[[], Link],
    steps: int,
    cfg: float,
    guidance: float = 0.0,
    positive: Callable[[Link], Link] = lambda conditioning: conditioning,
    extra_rollouts: Sequence[Link] = (),
) -> dict[str, Any]:
    """Loaders, pictures, settings, training, and the same noise drawn before and after it.

    Args:
        base: MODEL, CLIP and VAE.
        settings: optional inputs of Train LoRA and what they are linked to.
        steps: of the solver that draws.
    """
    model, clip, vae = base
    own = {"guidance": guidance} if guidance else {}
    source = sheet.put("RolloutFromComfyModel", "Model to train", model=model, clip=clip, vae=vae, **own)
    pictures = sheet.put("RolloutDatasetFromFolder", "Your pictures", BROWN, folder="demo/data")
    data = sheet.put(
        "RolloutEncodeDataset", "Encode once", model=source, dataset=pictures, resolution=resolution
    )
    saved, run = train_nodes(sheet, source, data, rollouts, name, settings, train)
    prompt = sheet.put("CLIPTextEncode", "Prompt", BROWN, text=PROMPT, clip=clip)
    negative = sheet.put("CLIPTextEncode", "Negative", text="", clip=clip)
    wanted = positive(prompt)
    seed = sheet.put("PrimitiveInt", "Seed of both rows", BROWN, value=1)
    empty = latent()
    sampler = sheet.put("RolloutSampler", "The rollout's solver", sampler="unipc", order=2)
    sigmas = sheet.put("RolloutSigmas", "The rollout's noise levels", model=model, steps=steps)
    adapted = sheet.put("RolloutApplyLoRA", "With the LoRA", BLUE, model=model, run=run)
    shared = {"positive": wanted, "negative": negative, "sampler": sampler, "sigmas": sigmas}
    shared |= {"latent_image": empty, "noise_seed": seed, "cfg": cfg, "add_noise": True}
    before = sheet.put("SamplerCustom", "Before", model=model, **shared)
    after = sheet.put("SamplerCustom", "After", model=adapted, **shared)
    rows = [sheet.put("VAEDecode", title, samples=drawn, vae=vae)
            for title, drawn in (("Before, decoded", before), ("After, decoded", after))]  # fmt: skip
    grid = sheet.put("RolloutCompareImages", "Before and after", first=rows[0], second=rows[1])
    shown = sheet.put(
        "SaveImage", "Before and after, picture", images=grid, filename_prefix=f"{name}/before_after"
    )
    film = sheet.put("RolloutPreview", "Preview a rollout", model=[run[0], 1], data=data,
                     scheduled_sampling=rollouts, samples=1, steps=5, target=0.4)  # fmt: skip
    strip = sheet.put("PreviewImage", "Filmstrip", images=film)
    conditions = [(prompt, 130), (negative, 100), *([wanted] if wanted != prompt else [])]
    return columns(
        sheet,
        (360, [group("Read me", about), group("1 - Model files", *loaders, source)]),
        (320, [group("2 - Pictures with captions", pictures, data), group("4 - Rollouts", *extra_rollouts, rollouts)]),
        (320, [group("3 - What is trained", *[link for _, link in settings]), group("6 - Prompts", *conditions)]),
        (400, [group("5 - Train", (run, 700), saved), group("Size and seed", empty, seed)]),
        (320, [group("7 - Draw with it", sampler, sigmas, adapted),
               group("Same noise, without and with", before, after)]),
        (460, [group("8 - Look", *rows, grid, (shown, 400), film, (strip, 280))]),
    )  # fmt: skip


def train_nodes(
    sheet: Sheet,
    source: Link,
    data: Link,
    rollouts: Link,
    name: str,
    settings: Sequence[tuple[str, Link]],
    train: Mapping[str, Any],
) -> tuple[Link, Link]:
    """The nodes that save the LoRA and that train it."""
    run = sheet.put(
        "RolloutTrainLoRA", "Train", BLUE, model=source, data=data, scheduled_sampling=rollouts, run_name=name,
        **dict(settings), **train,
    )  # fmt: skip
    saved = sheet.put("RolloutSaveLoRA", "Save LoRA", BLUE, run=run, filename=f"{name}_blob")
    return saved, run


def lora_settings(sheet: Sheet, rank: int) -> tuple[str, Link]:
    """Attention layers, the preset of the family."""
    return "lora", sheet.put(
        "RolloutLoRASettings", "LoRA settings", rank=rank, alpha=float(rank), preset="attention"
    )


def optimizer(sheet: Sheet, rate: float = 1e-4) -> tuple[str, Link]:
    """AdamW that ends gently."""
    node = sheet.put("RolloutOptimizerSettings", "Optimizer", learning_rate=rate, schedule="cosine",
                     warmup_steps=20, final_rate=0.1)  # fmt: skip
    return "optimizer", node


def middle_levels(sheet: Sheet) -> tuple[str, Link]:
    """More of the middle noise levels, as SD3 was trained; the model's own shift comes on top."""
    return "timesteps", sheet.put("RolloutTimestepSettings", "Noise levels", distribution="logit_normal")


def modest_rollouts(sheet: Sheet, steps: int, reflexflow: Link | None = None) -> Link:
    """Short rollouts of a third of the samples, each trained on twice: about a quarter forward more a sample."""
    own = {"reflexflow": reflexflow} if reflexflow else {}
    return sheet.put(
        "RolloutScheduledSampling", "Scheduled sampling", GREEN, max_step_offset=3, probability=0.3,
        steps_per_trajectory=steps, reuse=2, **own,
    )  # fmt: skip


TRAIN = {
    "steps": 1000, "batch_size": 1, "caption_dropout": 0.05, "autocast": "bf16", "gradient_checkpointing": True,
    "save_every": 250, "preview_every": 250, "recipe": "none",
}  # fmt: skip


def flux_files(sheet: Sheet) -> tuple[Link, Link, Link]:
    """Network, text encoders and VAE of Flux dev."""
    encoders = "comfyanonymous/flux_text_encoders/resolve/main/"
    autoencoder = "Comfy-Org/Lumina_Image_2.0_Repackaged/resolve/main/split_files/vae/ae.safetensors"
    return (
        sheet.put("UNETLoader", "Flux", unet_name="flux1-dev.safetensors", weight_dtype="fp8_e4m3fn", models=[
            ("flux1-dev.safetensors", "diffusion_models", "Comfy-Org/flux1-dev/resolve/main/flux1-dev.safetensors")]),
        sheet.put("DualCLIPLoader", "Its text encoders", clip_name1="clip_l.safetensors",
                  clip_name2="t5xxl_fp8_e4m3fn_scaled.safetensors", type="flux", models=[
            (n, "text_encoders", encoders + n) for n in ("clip_l.safetensors", "t5xxl_fp8_e4m3fn_scaled.safetensors")]),
        sheet.put("VAELoader", "Its VAE", vae_name="ae.safetensors", models=[
            ("ae.safetensors", "vae", autoencoder)]),
    )  # fmt: skip


def flux_lora() -> dict[str, Any]:
    """Flux dev: distilled guidance is an input, so captions carry it."""
    sheet = Sheet()
    unet, clip, vae = flux_files(sheet)
    reflexflow = sheet.put("RolloutReflexFlow", "ReflexFlow, bypassed", GREEN, BYPASSED, beta1=0.1)
    about = note(
        "# Flux LoRA\n"
        "Teaches FLUX.1 dev a style, a character or a thing from a folder of pictures, in this graph, and draws with "
        "the result. Opens with the pack's 24 small blob faces, to try it.\n\n"
        f"{CHANGE} 15 to 40 good pictures are plenty.\n\n"
        "**Memory** Set for 24 GB: fp8 base, 512 pixels, gradient checkpointing. 768 or 1024 are sharper, and take 2 "
        "or 4 times as long. The fp8 base alone is 12 GB: on a 12 GB card ComfyUI keeps part of it in RAM, which is "
        "slow. We had no such cards to measure on.\n\n"
        "**Guidance** dev was distilled and takes guidance as an input: 1 while it trains is usual, 3.5 to draw.\n\n"
        "**Rollouts** cost little here; Scheduled Sampling says how much. Probability 0 is plain training, to compare. "
        "ReflexFlow is bypassed (Ctrl+B): it turns the velocity towards the data, and dev's is bent by guidance.\n\n"
        + STOP, 460)  # fmt: skip
    rollouts = modest_rollouts(sheet, 20, reflexflow)
    settings = [lora_settings(sheet, 16), optimizer(sheet), middle_levels(sheet)]
    return lora_workflow(
        sheet, (unet, clip, vae), (unet, clip, vae), about, name="flux", resolution=512,
        rollouts=rollouts, settings=settings, train=TRAIN, steps=20, cfg=1.0, guidance=1.0,
        latent=lambda: sheet.put("EmptySD3LatentImage", "Size", width=768, height=768, batch_size=2),
        positive=lambda text: sheet.put("FluxGuidance", "Guidance to draw", conditioning=text, guidance=3.5),
        extra_rollouts=[reflexflow],
    )  # fmt: skip


def sd35_lora() -> dict[str, Any]:
    """SD3.5 medium: one file has all of it; a flow model that nothing has bent."""
    sheet = Sheet()
    file = "sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors"
    checkpoint = sheet.put("CheckpointLoaderSimple", "SD3.5 medium", ckpt_name=file, models=[
        (file, "checkpoints", f"Comfy-Org/stable-diffusion-3.5-fp8/resolve/main/{file}")])  # fmt: skip
    node = checkpoint[0]
    model = sheet.put("ModelSamplingSD3", "Shift, to train and to draw", model=checkpoint, shift=3.0)
    reflexflow = sheet.put("RolloutReflexFlow", "ReflexFlow, bypassed", GREEN, BYPASSED, beta1=0.1)
    about = note(
        "# SD3.5 LoRA\n"
        "Teaches Stable Diffusion 3.5 medium a style, a character or a thing from a folder of pictures, and draws with "
        "the result. SD3 medium and SD3.5 large go the same way.\n\n"
        f"{CHANGE}\n\n"
        "**Memory** The network is 5 GB in fp16. Set for 24 GB: 1024 pixels, gradient checkpointing; 512 or 768 for "
        "12 GB. We had no such cards to measure on.\n\n"
        "**Rollouts** cost little here; Scheduled Sampling says how much. Probability 0 is plain training, to compare. "
        "ReflexFlow is bypassed (Ctrl+B): it did worse in the pack's study.\n\n"
        + STOP, 400)  # fmt: skip
    rollouts = modest_rollouts(sheet, 28, reflexflow)
    settings = [lora_settings(sheet, 16), optimizer(sheet), middle_levels(sheet)]
    return lora_workflow(
        sheet, (model, [node, 1], [node, 2]), (checkpoint, model), about, name="sd35", resolution=1024,
        rollouts=rollouts, settings=settings, train=TRAIN | {"caption_dropout": 0.1}, steps=28, cfg=4.5,
        latent=lambda: sheet.put("EmptySD3LatentImage", "Size", width=1024, height=1024, batch_size=2),
        extra_rollouts=[reflexflow],
    )  # fmt: skip


def sdxl_checkpoint(sheet: Sheet) -> Link:
    """Network, text encoders and VAE in one file."""
    file = "sd_xl_base_1.0.safetensors"
    return sheet.put("CheckpointLoaderSimple", "SDXL, or a model made from it", ckpt_name=file, models=[
        (file, "checkpoints", f"stabilityai/stable-diffusion-xl-base-1.0/resolve/main/{file}")])  # fmt: skip


def sdxl_lora() -> dict[str, Any]:
    """SDXL: it predicts noise, where ReflexFlow does not apply and min-SNR does."""
    sheet = Sheet()
    checkpoint = sdxl_checkpoint(sheet)
    node = checkpoint[0]
    about = note(
        "# SDXL LoRA\n"
        "Teaches SDXL, or any model made from it, a style, a character or a thing from a folder of pictures, and draws "
        "with the result. SD1.5 goes the same way at 512.\n\n"
        f"{CHANGE}\n\n"
        "**Memory** The network is 5 GB in fp16. Set for 24 GB: 1024 pixels, gradient checkpointing, batch 1; 768 for "
        "12 GB. We had no such cards to measure on.\n\n"
        "**Rollouts** work for models that predict noise, too; probability 0 is plain training, to compare. "
        "**ReflexFlow** is for flow models and is not in this graph; min-SNR is for these, 5 is usual.\n\n"
        + STOP, 370)  # fmt: skip
    loss = "loss", sheet.put("RolloutLossSettings", "Loss", min_snr_gamma=5.0)
    rollouts = modest_rollouts(sheet, 25)
    settings = [lora_settings(sheet, 16), optimizer(sheet), loss]
    return lora_workflow(
        sheet, (checkpoint, [node, 1], [node, 2]), (checkpoint,), about, name="sdxl", resolution=1024,
        rollouts=rollouts, settings=settings, train=TRAIN | {"caption_dropout": 0.1}, steps=25, cfg=6.0,
        latent=lambda: sheet.put("EmptyLatentImage", "Size", width=1024, height=1024, batch_size=2),
    )  # fmt: skip


def wan_image_lora() -> dict[str, Any]:
    """Wan 2.1 on pictures, as films of one frame, at a shift for pictures."""
    sheet = Sheet()
    place = "Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/"
    files = {"diffusion_models": "wan2.1_t2v_1.3B_fp16.safetensors", "vae": "wan_2.1_vae.safetensors",
             "text_encoders": "umt5_xxl_fp8_e4m3fn_scaled.safetensors"}  # fmt: skip
    known = {folder: [(name, folder, f"{place}{folder}/{name}")] for folder, name in files.items()}
    unet, clip, vae = (
        sheet.put("UNETLoader", "Wan 2.1, text to video", unet_name=files["diffusion_models"],
                  weight_dtype="default", models=known["diffusion_models"]),
        sheet.put("CLIPLoader", "Its text encoder", clip_name=files["text_encoders"], type="wan",
                  models=known["text_encoders"]),
        sheet.put("VAELoader", "Its VAE", vae_name=files["vae"], models=known["vae"]),
    )  # fmt: skip
    model = sheet.put("ModelSamplingSD3", "Shift, to train and to draw", model=unet, shift=3.0)
    reflexflow = sheet.put("RolloutReflexFlow", "ReflexFlow, bypassed", GREEN, BYPASSED, beta1=0.1)
    about = note(
        "# Wan image LoRA\n"
        "Teaches the video model Wan a style, a character or a thing from *pictures*: each is a film of one frame. The "
        "LoRA then works in your film workflows, too.\n\n"
        f"{CHANGE}\n\n"
        "**Memory** The 1.3B network is 3 GB: 512 pixels, gradient checkpointing should suit 12 GB. For the 14B one "
        "choose its fp8 file (14 GB, for 24 GB). We had no such cards to measure on.\n\n"
        "**Shift** 3 suits pictures; films are drawn with 5 to 8.\n\n"
        "**Wan 2.2 14B** is two networks: train one LoRA for each, with *Noise levels* cut where one hands over to the "
        "other.\n\n"
        "**Rollouts** cost little here; Scheduled Sampling says how much. Probability 0 is plain training, to compare. "
        "ReflexFlow is bypassed (Ctrl+B): it did worse in the pack's study.", 460)  # fmt: skip
    rollouts = modest_rollouts(sheet, 20, reflexflow)
    levels = "timesteps", sheet.put("RolloutTimestepSettings", "Noise levels", distribution="uniform")
    settings = [lora_settings(sheet, 16), optimizer(sheet), levels]
    return lora_workflow(
        sheet, (model, clip, vae), (unet, clip, vae, model), about, name="wan", resolution=512,
        rollouts=rollouts, settings=settings, train=TRAIN, steps=20, cfg=5.0,
        latent=lambda: sheet.put(
            "EmptyHunyuanLatentVideo", "Size, one frame", width=512, height=512, length=1, batch_size=2
        ),
        extra_rollouts=[reflexflow],
    )  # fmt: skip


# -- your own pictures, in as few nodes as there can be ------------------------------------------------

FEW = {
    "steps": 1500, "caption_dropout": 0.05, "autocast": "bf16", "gradient_checkpointing": True, "memory": "auto",
    "save_every": 250, "preview_every": 250, "recipe": "automatic", "run_name": "my_pictures",
}  # fmt: skip


def my_pictures(
    sheet: Sheet, base: tuple[Link, Link, Link], loaders: Sequence[Link], about: Item
) -> dict[str, Any]:
    """Loaders, a folder, and the training, which takes its settings from the model's recipe and saves the LoRA."""
    model, clip, vae = base
    pictures = sheet.put("RolloutDatasetFromFolder", "Your pictures", BROWN, folder="demo/data")
    train = sheet.put("RolloutTrainLoRA", "Train", BLUE, model=model, clip=clip, vae=vae, data=pictures,
                      save_lora_as="my_lora", **FEW)  # fmt: skip
    return columns(
        sheet,
        (380, [group("Read me", about)]),
        (340, [group("1 - Model", *loaders), group("2 - Your pictures", pictures)]),
        (460, [group("3 - Train", (train, 760))]),
    )


def my_note(title: str, model: str, memory: str) -> Item:
    """How to train on one's own pictures, in five steps."""
    return note(
        f"# {title}\n"
        f"Teaches {model} a style, a character or a thing from a folder of your pictures. Opens with the pack's 24 "
        "small blob faces, to try it.\n\n"
        "1. Choose your model file.\n"
        "2. Put 15 to 40 good pictures into a folder below ComfyUI's *input* and write its name into *folder*. A text "
        "file of the same name beside a picture is its caption; pictures without one get *default_caption*.\n"
        "3. *trigger_word*: a word that you make up, to call what was learnt in your prompts.\n"
        "4. Press Run. The panel shows the loss, and every 250 steps a film of what the LoRA draws.\n"
        "5. *finish now* ends the training when you like what you see. The LoRA is saved under the name in "
        "*save_lora_as* and stands in ComfyUI's LoRA loaders at once.\n\n"
        "Rank, learning rate and noise levels are those that trainers use for this model; settings nodes connected to "
        f"Train change them.\n\n**Memory** {memory} *memory: auto* changes what would not fit. We had no such cards "
        "to measure on.", 560)  # fmt: skip


def my_pictures_sdxl() -> dict[str, Any]:
    """SDXL in three nodes and four wires."""
    sheet = Sheet()
    checkpoint = sdxl_checkpoint(sheet)
    node = checkpoint[0]
    about = my_note(
        "My pictures, SDXL", "SDXL, or any model made from it,", "The network is 5 GB; 12 GB are enough."
    )
    return my_pictures(sheet, (checkpoint, [node, 1], [node, 2]), (checkpoint,), about)


def my_pictures_flux() -> dict[str, Any]:
    """Flux dev: its parts are files of their own."""
    sheet = Sheet()
    base = flux_files(sheet)
    about = my_note("My pictures, Flux", "FLUX.1 dev", "The fp8 base is 12 GB, for cards of 24 GB.")
    return my_pictures(sheet, base, base, about)


def my_pictures_z_image() -> dict[str, Any]:
    """Z-Image, the base model."""
    sheet = Sheet()
    place = "Comfy-Org/z_image/resolve/main/split_files/"
    unet, clip, vae = (
        sheet.put("UNETLoader", "Z-Image", unet_name="z_image_bf16.safetensors", weight_dtype="default", models=[
            ("z_image_bf16.safetensors", "diffusion_models", f"{place}diffusion_models/z_image_bf16.safetensors")]),
        sheet.put("CLIPLoader", "Its text encoder", clip_name="qwen_3_4b.safetensors", type="lumina2", models=[
            ("qwen_3_4b.safetensors", "text_encoders", f"{place}text_encoders/qwen_3_4b.safetensors")]),
        sheet.put("VAELoader", "Its VAE", vae_name="ae.safetensors", models=[
            ("ae.safetensors", "vae", f"{place}vae/ae.safetensors")]),
    )  # fmt: skip
    about = my_note("My pictures, Z-Image", "Z-Image", "The network is 12 GB, for cards of 24 GB.")
    return my_pictures(sheet, (unet, clip, vae), (unet, clip, vae), about)


def my_pictures_app() -> dict[str, Any]:
    """The same as an app: a form with four fields, and the film and the LoRA beside it."""
    sheet = Sheet()
    checkpoint = sdxl_checkpoint(sheet)
    base = {"model": checkpoint, "clip": [checkpoint[0], 1], "vae": [checkpoint[0], 2]}
    pictures = sheet.put("RolloutDatasetFromFolder", "Your pictures", BROWN, folder="demo/data")
    data = sheet.put("RolloutEncodeDataset", "Encode once", dataset=pictures, resolution=1024, **base)
    train = sheet.put("RolloutTrainLoRA", "Train", BLUE, data=data, **base, **FEW)
    saved = sheet.put("RolloutSaveLoRA", "LoRA", BLUE, run=train, filename="my_lora")
    rolled = sheet.put("RolloutScheduledSampling", "How the film is rolled out", GREEN,
                       max_step_offset=6, steps_per_trajectory=6)  # fmt: skip
    film = sheet.put("RolloutPreview", "Film", model=[train[0], 1], data=data, scheduled_sampling=rolled,
                     samples=4, steps=6, target=0.0)  # fmt: skip
    shown = sheet.put("SaveImage", "Film of the LoRA", images=film, filename_prefix="my_lora/film")
    about = note(
        "# My pictures, as an app\n"
        "Trains SDXL, or any model made from it, on a folder of your pictures. It opens as an app: a form with the "
        "model, the folder, the trigger word and the steps; the film and the LoRA appear beside it. The menu at the "
        "upper left changes between the app and this graph.\n\n"
        "Any other model: put its loaders in the place of the checkpoint.", 300)  # fmt: skip
    graph = columns(
        sheet,
        (380, [group("Read me", about)]),
        (340, [group("1 - Model and pictures", checkpoint, pictures, data, rolled)]),
        (460, [group("2 - Train", (train, 760))]),
        (560, [group("3 - Look", saved, film, (shown, 360))]),
    )
    inputs = [(checkpoint, "ckpt_name"), (pictures, "folder"), (pictures, "trigger_word"), (train, "steps")]
    graph["_extra"]["app"] = {
        "inputs": [[int(link[0]), widget] for link, widget in inputs],
        "outputs": [int(shown[0]), int(saved[0])],
    }
    return graph


# -- comparing solvers -------------------------------------------------------------------------------

CAPTIONS = """red apple, flat style, white background
fox, noto style, yellow background
grinning face, flat style, blue background
owl, noto style, white background
rocket, flat style, black background
hot beverage, noto style, pink background
cactus, flat style, white background
octopus, noto style, green background"""
BUDGET = 8
"""Model evaluations of every solver."""


def sampler_comparison() -> dict[str, Any]:
    """Four solvers at equal cost on the demo model, above what they all go to."""
    sheet = Sheet()
    model = sheet.put("RolloutLoadDiffusers", "Base model", folder="demo/model")
    captions = sheet.put("PrimitiveStringMultiline", "Captions, one picture each", BROWN, value=CAPTIONS)
    seed = sheet.put("PrimitiveInt", "Seed of all rows", BROWN, value=3)

    cost = sheet.put("PrimitiveInt", "Evaluations", BROWN, value=BUDGET)
    quarter = sheet.put("PrimitiveInt", "A quarter of them, for rk4", BROWN, value=BUDGET // 4)

    def drawn(title: str, sampler: str, steps: Link | int) -> Link:
        return sheet.put(
            "RolloutSample", title, model=model, prompts=captions, seed=seed, sampler=sampler, steps=steps,
            order=2, cfg=2.0,
        )  # fmt: skip

    rows = [
        drawn("euler", "euler", cost),
        drawn("dpm", "dpm", cost),
        drawn("unipc", "unipc", cost),
        drawn("rk4: four evaluations a step", "rk4", quarter),
        drawn("Where all of them go: 100 steps", "unipc", 100),
    ]
    inputs = dict(zip(("first", "second", "third", "fourth", "fifth"), rows, strict=True))
    labels = "euler\ndpm\nunipc\nrk4\n100 steps"
    grid = sheet.put("RolloutCompareImages", "Compare", labels=labels, captions=captions, **inputs)
    shown = sheet.put("SaveImage", "Solvers at equal cost", images=grid, filename_prefix="solvers/comparison")
    about = note(
        "# Sampler comparison\n"
        "The four solvers of the pack at the same number of model evaluations, from the same noise; the last row is "
        "where all of them go. Half a minute on a CPU, nothing to download.\n\n"
        "Change *Evaluations*, and the quarter with it. Distances to the last row (rms, in percent of white), as we "
        "measured them:\n\n"
        "| evaluations | euler | dpm | unipc | rk4 |\n|---|---|---|---|---|\n"
        "| 4 | 2.5 | 2.8 | 2.5 | 15 |\n| 8 | 1.2 | 1.2 | 0.9 | 3.3 |\n| 12 | 0.8 | 0.7 | 0.5 | 1.8 |\n\n"
        "This small model goes nearly straight on captions that it knows: another may rank them otherwise. To see "
        "yours, plug *Rollout Sampler* and *Rollout Sigmas* into SamplerCustom: it is the same code.",
        430,
    )
    return columns(
        sheet,
        (380, [group("Read me", about), group("1 - Model and captions", model, (captions, 200))]),
        (320, [group("2 - What they share", cost, quarter, seed), group("The aim", rows[4])]),
        (320, [group("3 - Equal cost", *rows[:4])]),
        (1000, [group("4 - Look", grid, (shown, 760))]),
    )


WORKFLOWS: dict[str, Callable[[], dict[str, Any]]] = {
    "flux-lora": flux_lora,
    "sd35-lora": sd35_lora,
    "sdxl-lora": sdxl_lora,
    "wan-image-lora": wan_image_lora,
    "sampler-comparison": sampler_comparison,
    "my-pictures-sdxl": my_pictures_sdxl,
    "my-pictures-flux": my_pictures_flux,
    "my-pictures-z-image": my_pictures_z_image,
    "my-pictures-app": my_pictures_app,
}

# -- workflows that are changed in the front end, and laid out here ------------------------------------

LAID_OUT: dict[str, Sequence[tuple[int, Sequence[tuple[str, Sequence[Any]]]]]] = {
    "quickstart": (
        (380, (("Read me", [[19, 200]]), ("1 - Model and pictures", [1, 2, 3]))),
        (340, (("2 - What is trained", [4, 5]), ("3 - Rollouts", [6, 7]))),
        (400, (("4 - Train", [[8, 700], 13]),)),
        (340, (("5 - Draw captions it has never seen", [[18, 200], 14, 15]),)),
        (640, (("6 - Look", [16, [17, 330], 9, [10, 180], 11, [12, 360]]),)),
    ),
    "staged-training": (
        (360, (("Read me", [[31, 220]]), ("1 - Model and pictures", [1, 2, 3]))),
        (320, (("2 - How it is trained", [4, 5, 7]),)),
        (340, (("3 - Start", [8]), ("Captions it has never seen", [[30, 200]]))),
        (340, (("4 - First stage", [[9, 420], 20]),)),
        (340, (("5 - Second stage", [[10, 420], 21]),)),
        (340, (("6 - Third stage", [[11, 420], 22]),)),
        (460, (("7 - Look", [25, [26, 330], 27, [28, 280], 29]),)),
    ),
    "exposure-bias": (
        (380, (("Read me", [[12, 230]]), ("1 - Model and pictures", [1, 2, 3]))),
        (340, (("2 - What is trained", [4, 5]),)),
        (400, (("3 - Train, plain", [[8, 700]]),)),
        (900, (("4 - Measure", [9, [11, 200], [10, 420]]),)),
    ),
}  # fmt: skip
"""Columns: a width, and titles of groups with the numbers of their nodes."""


def laid_out(name: str) -> list[dict[str, Any]]:
    """The columns of one of `LAID_OUT`, as `lay_out_again` takes them."""
    return [
        {"width": width, "groups": [{"title": title, "items": items} for title, items in groups]}
        for width, groups in LAID_OUT[name]
    ]


if __name__ == "__main__":
    from family_workflows import FAMILY_WORKFLOWS  # it builds on this module

    WORKFLOWS |= FAMILY_WORKFLOWS
    with front_end() as new_page:
        for chosen in sys.argv[1:] or [*WORKFLOWS, *LAID_OUT]:
            file = ROOT / "workflows" / f"{chosen}.json"
            if chosen in LAID_OUT:
                lay_out_again(new_page, laid_out(chosen), file)
            else:
                save(new_page, WORKFLOWS[chosen](), file)
