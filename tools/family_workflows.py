"""The graphs of `workflows/` that train one of the newer families with its recipe; `make_workflows` saves them.

Each has the same way through it: model files, pictures, a recipe, training, and the same noise drawn without and with
the LoRA. Model files are those that ComfyUI's own templates name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from make_workflows import (
    BLUE,
    BROWN,
    PROMPT,
    STOP,
    TRAIN,
    Item,
    Link,
    Sheet,
    columns,
    group,
    modest_rollouts,
    note,
    train_nodes,
)

File = tuple[str, str, str]
"""Name of a model file, its folder and its place at Hugging Face."""
OWN = "Comfy-Org/"
MEMORY = "We had no such cards to measure on."
RECIPE = (
    "**Recipe** holds the settings that trainers use for this model; its summary says which. Its button turns it into "
    "settings nodes to change."
)
ROLLOUTS = "**Rollouts** cost little here; Scheduled Sampling says how much. Probability 0 is plain training."


def file(repository: str, folder: str, name: str) -> File:
    """A file of a repository that is laid out as ComfyUI's own are."""
    return name, folder, f"{OWN}{repository}/resolve/main/split_files/{folder}/{name}"


QWEN3 = file("z_image_turbo", "text_encoders", "qwen_3_4b.safetensors")
UMT5 = file("Wan_2.1_ComfyUI_repackaged", "text_encoders", "umt5_xxl_fp8_e4m3fn_scaled.safetensors")


@dataclass(frozen=True)
class Loaded:
    """The parts of a model."""

    model: Link
    clip: Link
    vae: Link
    nodes: Sequence[Link]
    """All loaders, in the order in which they stand."""


def loaded(sheet: Sheet, name: str, unet: File, clip: File, kind: str, vae: File) -> Loaded:
    """Loaders of a network, one text encoder and a VAE."""
    parts = (
        sheet.put("UNETLoader", name, unet_name=unet[0], weight_dtype="default", models=[unet]),
        sheet.put("CLIPLoader", "Its text encoder", clip_name=clip[0], type=kind, models=[clip]),
        sheet.put("VAELoader", "Its VAE", vae_name=vae[0], models=[vae]),
    )
    return Loaded(*parts, nodes=parts)


def shifted(sheet: Sheet, parts: Loaded, shift: float) -> Loaded:
    """The same, with the network's noise levels shifted."""
    model = sheet.put("ModelSamplingAuraFlow", "Shift, to train and to draw", model=parts.model, shift=shift)
    return Loaded(model, parts.clip, parts.vae, [*parts.nodes, model])


@dataclass(frozen=True)
class Trained:
    """A model, the recipe it is trained with, and the run."""

    source: Link
    data: Link
    recipe: Link
    run: Link
    saved: Link


def trained(
    sheet: Sheet,
    parts: Loaded,
    pictures: Link,
    rollouts: Link,
    *,
    recipe: str,
    name: str,
    what: str = "",
    guidance: float = 0.0,
    data: Link | None = None,
    **train: Any,
) -> Trained:
    """The nodes from a MODEL to its LoRA file.

    Args:
        what: which of several models this is, for the titles.
        data: encoded already, for another model of the same kind.
    """
    own = {"guidance": guidance} if guidance else {}
    source = sheet.put(
        "RolloutFromComfyModel",
        f"Model to train{what}",
        model=parts.model,
        clip=parts.clip,
        vae=parts.vae,
        **own,
    )
    settings = sheet.put("RolloutRecipe", f"Recipe{what}", GREEN_RECIPE, model=source, recipe=recipe)
    data = data or sheet.put(
        "RolloutEncodeDataset", "Encode once", model=source, dataset=pictures, resolution=[settings[0], 4]
    )
    named = [(wire, [settings[0], i]) for i, wire in enumerate(("lora", "optimizer", "timesteps", "loss"))]
    saved, run = train_nodes(sheet, source, data, rollouts, name, named, TRAIN | train)
    for node, title in ((run, "Train"), (saved, "Save LoRA")):
        sheet.prompt[node[0]]["_meta"]["title"] = title + what
    return Trained(source, data, settings, run, saved)


GREEN_RECIPE = ["#332922", "#593930"]


@dataclass(frozen=True)
class Drawing:
    """How the model draws."""

    positive: Link
    negative: Link
    latent: Link
    nodes: Sequence[Any]
    """What stands in its group: conditioning and size."""
    cfg: float
    steps: int
    fps: float = 0.0
    """Of what is drawn, if that is a clip."""


def clip(sheet: Sheet, images: Link, name: str, title: str, fps: float) -> Link:
    """The node that saves a clip."""
    prefix = f"{name}/{title.lower()}"
    return sheet.put("SaveAnimatedWEBP", f"{title}, clip", images=images, filename_prefix=prefix, fps=fps,
                     lossless=False, quality=90, method="default")  # fmt: skip


def picture(sheet: Sheet, decoded: Sequence[Link], name: str) -> list[Any]:
    """The nodes that show pictures beside each other, and save that."""
    grid = sheet.put("RolloutCompareImages", "Before and after", first=decoded[0], second=decoded[1])
    prefix = f"{name}/before_after"
    return [
        grid,
        (sheet.put("SaveImage", "Before and after, picture", images=grid, filename_prefix=prefix), 420),
    ]


def rows(
    sheet: Sheet, drawing: Drawing, stages: Sequence[tuple[Link, Link]], sigmas: Sequence[Link]
) -> tuple[list[Link], list[Link], list[Link]]:
    """The same noise without and with the LoRA: samplers of both rows, their pictures, and the nodes they share.

    Args:
        stages: of each model in turn, the MODEL without and with its LoRA.
        sigmas: the noise levels of each.
    """
    seed = sheet.put("PrimitiveInt", "Seed of both rows", BROWN, value=1)
    sampler = sheet.put("RolloutSampler", "The rollout's solver", sampler="unipc", order=2)
    samplers: list[Link] = []
    pictures: list[Link] = []
    for column, title in enumerate(("Before", "After")):
        latent = drawing.latent
        for number, (pair, levels) in enumerate(zip(stages, sigmas, strict=True)):
            last = number == len(stages) - 1
            latent = sheet.put(
                "SamplerCustom", title if last else f"{title}, high noise", model=pair[column],
                positive=drawing.positive, negative=drawing.negative, sampler=sampler, sigmas=levels,
                latent_image=latent, noise_seed=seed, cfg=drawing.cfg, add_noise=number == 0,
            )  # fmt: skip
            samplers.append(latent)
        pictures.append(latent)
    return samplers, pictures, [seed, sampler]


def workflow(
    sheet: Sheet,
    about: Item,
    parts: Loaded,
    pictures: Sequence[Link],
    trainings: Sequence[Trained],
    rollouts: Link,
    drawing: Drawing,
    name: str,
    *,
    split: int = 0,
    models: Sequence[Link] = (),
) -> dict[str, Any]:
    """A whole graph, laid out.

    Args:
        trainings: of a model, or of two that share the noise levels, high noise first.
        split: the step at which the second of two models goes on.
        models: the MODELs that draw, one for each training.
    """
    adapted = [
        sheet.put("RolloutApplyLoRA", "With the LoRA", BLUE, model=model, run=own.run)
        for model, own in zip(models, trainings, strict=True)
    ]
    sigmas = sheet.put("RolloutSigmas", "The rollout's noise levels", model=models[0], steps=drawing.steps)
    levels, cut = [sigmas], []
    if split:
        cut = [sheet.put("SplitSigmas", "Where the second model goes on", sigmas=sigmas, step=split)]
        levels = [cut[0], [cut[0][0], 1]]
    stages = list(zip(models, adapted, strict=True))
    samplers, latents, shared = rows(sheet, drawing, stages, levels)
    decoded = [
        sheet.put("VAEDecode", f"{title}, decoded", samples=latent, vae=parts.vae)
        for title, latent in zip(("Before", "After"), latents, strict=True)
    ]
    first = trainings[0]
    film = sheet.put("RolloutPreview", "Preview a rollout", model=[first.run[0], 1], data=first.data,
                     scheduled_sampling=rollouts, samples=1, steps=5, target=0.4)  # fmt: skip
    strip = sheet.put("PreviewImage", "Filmstrip", images=film)
    seen = [film, (strip, 320)]
    if drawing.fps:
        seen = [(clip(sheet, images, name, title, drawing.fps), 300)
                for images, title in zip(decoded, ("Before", "After"), strict=True)] + seen  # fmt: skip
    else:
        seen = [*picture(sheet, decoded, name), *seen]
    sources, recipes = [own.source for own in trainings], [own.recipe for own in trainings]
    runs = [item for own in trainings for item in ((own.run, 700), own.saved)]
    half = 2 * len(trainings[:1])
    train = [(400, [group("5 - Train", *runs[:half])])]
    if len(trainings) > 1:
        train.append((400, [group("5 - Train the other", *runs[half:])]))
    return columns(
        sheet,
        (380, [group("Read me", about), group("1 - Model files", *parts.nodes, *sources)]),
        (340, [group("2 - Pictures with captions", *pictures, first.data), group("4 - Rollouts", (rollouts, 380))]),
        (340, [group("3 - What is trained, and how", *[(recipe, 260) for recipe in recipes]),
               group("6 - What is drawn", *drawing.nodes)]),
        *train,
        (340, [group("7 - Draw with it", *shared, sigmas, *cut, *adapted),
               group("Same noise, without and with", *samplers)]),
        (480, [group("8 - Look", *decoded, *seen)]),
    )  # fmt: skip


def texts(sheet: Sheet, clip: Link, prompt: str = PROMPT) -> tuple[Link, Link]:
    """A prompt and an empty one."""
    return (
        sheet.put("CLIPTextEncode", "Prompt", BROWN, text=prompt, clip=clip),
        sheet.put("CLIPTextEncode", "Negative", text="", clip=clip),
    )


def size(sheet: Sheet, node: str, side: int, pictures: int = 2, **more: int) -> Link:
    """An empty latent of so many pictures."""
    return sheet.put(node, "Size", width=side, height=side, batch_size=pictures, **more)


CHANGE = (
    "**Change** the folder in 2 (`cat.png` beside `cat.txt`), *trigger_word* if the captions have none, and the "
    "prompt."
)


def blobs(sheet: Sheet, **inputs: Any) -> Link:
    """The pictures that come with the pack."""
    return sheet.put("RolloutDatasetFromFolder", "Your pictures", BROWN, folder="demo/data", **inputs)


# -- text to image -----------------------------------------------------------------------------------


def flux2_klein_lora() -> dict[str, Any]:
    """The base model of Klein 4B, which is not distilled."""
    sheet = Sheet()
    vae = file("flux2-dev", "vae", "flux2-vae.safetensors")
    unet = file("flux2-klein", "diffusion_models", "flux-2-klein-base-4b.safetensors")
    clip = file("flux2-klein", "text_encoders", "qwen_3_4b.safetensors")
    parts = loaded(sheet, "FLUX.2 Klein base", unet, clip, "flux2", vae)
    about = note(
        "# FLUX.2 Klein LoRA\n"
        "Teaches FLUX.2 Klein (4B) a style, a character or a thing from a folder of pictures, and draws with the "
        "result. "
        "Opens with the pack's 24 small blob faces, to try it.\n\n"
        f"{CHANGE}\n\n"
        "**Base and distilled** Train the *base* file, as here. Its LoRA works on the distilled Klein, too: there with "
        "4 steps and CFG 1.\n\n"
        f"**Memory** The network is 8 GB in bf16: 1024 pixels should suit 16 GB, 512 12 GB. {MEMORY}\n\n"
        f"{RECIPE}\n\n{ROLLOUTS}\n\n{STOP}", 430)  # fmt: skip
    rollouts = modest_rollouts(sheet, 20)
    pictures = blobs(sheet)
    own = trained(sheet, parts, pictures, rollouts, recipe="Flux.2 Klein: style", name="flux2_klein")
    positive, negative = texts(sheet, parts.clip)
    empty = size(sheet, "EmptyFlux2LatentImage", 1024)
    drawing = Drawing(positive, negative, empty, [(positive, 130), (negative, 100), empty], 5.0, 20)
    return workflow(
        sheet, about, parts, [pictures], [own], rollouts, drawing, "flux2_klein", models=[parts.model]
    )


def z_image_lora() -> dict[str, Any]:
    """Z-Image, the model that Turbo was distilled from."""
    sheet = Sheet()
    vae = file("z_image_turbo", "vae", "ae.safetensors")
    unet = file("z_image", "diffusion_models", "z_image_bf16.safetensors")
    parts = loaded(sheet, "Z-Image", unet, QWEN3, "lumina2", vae)
    parts = shifted(sheet, parts, 3.0)
    about = note(
        "# Z-Image LoRA\n"
        "Teaches Z-Image a style, a character or a thing from a folder of pictures, and draws with the result. Opens "
        "with "
        "the pack's 24 small blob faces, to try it.\n\n"
        f"{CHANGE}\n\n"
        "**Turbo** is distilled: trained as it is, it forgets how to draw in few steps. Train this base model and "
        "use the "
        "LoRA on Turbo, or put a de-distilling adapter on Turbo with *Load LoRA* before *Model to train*, and choose "
        "the "
        "recipe for Turbo.\n\n"
        f"**Memory** The network is 12 GB in bf16: 1024 pixels should suit 24 GB, 512 16 GB. {MEMORY}\n\n"
        f"{RECIPE}\n\n{ROLLOUTS}\n\n{STOP}", 450)  # fmt: skip
    rollouts = modest_rollouts(sheet, 25)
    pictures = blobs(sheet)
    own = trained(sheet, parts, pictures, rollouts, recipe="Z-Image: style", name="z_image")
    positive, negative = texts(sheet, parts.clip)
    empty = size(sheet, "EmptySD3LatentImage", 1024)
    drawing = Drawing(positive, negative, empty, [(positive, 130), (negative, 100), empty], 4.0, 25)
    return workflow(
        sheet, about, parts, [pictures], [own], rollouts, drawing, "z_image", models=[parts.model]
    )


# -- pairs ---------------------------------------------------------------------------------------------

PAIRS = (
    "**Pairs** Two folders with files of the same names: the pictures as they shall become, with the instruction as "
    "their "
    "caption (`cat.png`, `cat.txt`), and in *control_1* the pictures before (`cat.png`). Here the pack's blob faces "
    "get their colours back."
)
INSTRUCTION = "give it colour"
EDIT = "give it colour, grinning face, blob style, white background"
EXAMPLE = "example.png"
"""A picture that comes with ComfyUI."""


def pairs(sheet: Sheet) -> Link:
    """The blob faces, and before them grey ones."""
    return blobs(sheet, trigger_word=INSTRUCTION, control_1="demo/grey", control_1_role="reference")


def flux_kontext_lora() -> dict[str, Any]:
    """Kontext: the picture before the edit stands beside the noise, as a reference latent."""
    sheet = Sheet()
    name = "flux1-dev-kontext_fp8_scaled.safetensors"
    unet = file("flux1-kontext-dev_ComfyUI", "diffusion_models", name)
    encoders = "comfyanonymous/flux_text_encoders/resolve/main/"
    clips = [
        (n, "text_encoders", encoders + n)
        for n in ("clip_l.safetensors", "t5xxl_fp8_e4m3fn_scaled.safetensors")
    ]
    vae = file("Lumina_Image_2.0_Repackaged", "vae", "ae.safetensors")
    nodes = (
        sheet.put("UNETLoader", "Flux Kontext", unet_name=name, weight_dtype="default", models=[unet]),
        sheet.put("DualCLIPLoader", "Its text encoders", clip_name1=clips[0][0], clip_name2=clips[1][0], type="flux",
                  models=clips),
        sheet.put("VAELoader", "Its VAE", vae_name=vae[0], models=[vae]),
    )  # fmt: skip
    parts = Loaded(*nodes, nodes=nodes)
    about = note(
        "# Flux Kontext, edit pairs\n"
        "Teaches FLUX.1 Kontext an edit from pairs of pictures, and edits a picture with the result.\n\n"
        f"{PAIRS}\n\n"
        "**Change** both folders in 2, and the instruction and the picture in 6.\n\n"
        f"**Memory** fp8 base, 12 GB; with its reference each sample is two pictures. Set for 24 GB. {MEMORY}\n\n"
        f"{RECIPE}\n\n{ROLLOUTS} The reference is seen in every step of a rollout.\n\n{STOP}", 430)  # fmt: skip
    rollouts = modest_rollouts(sheet, 20)
    pictures = pairs(sheet)
    own = trained(
        sheet, parts, pictures, rollouts, recipe="Flux Kontext: edit", name="flux_kontext", guidance=1.0
    )
    text = sheet.put("CLIPTextEncode", "Instruction", BROWN, text=EDIT, clip=parts.clip)
    picture = sheet.put("LoadImage", "Picture to edit", BROWN, image=EXAMPLE)
    scaled = sheet.put("FluxKontextImageScale", "To a size that it knows", image=picture)
    latent = sheet.put("VAEEncode", "As a latent", pixels=scaled, vae=parts.vae)
    seen = sheet.put("ReferenceLatent", "Seen while it draws", conditioning=text, latent=latent)
    positive = sheet.put("FluxGuidance", "Guidance to draw", conditioning=seen, guidance=2.5)
    negative = sheet.put("ConditioningZeroOut", "No negative", conditioning=text)
    empty = size(sheet, "EmptySD3LatentImage", 1024, pictures=1)
    shown = [(text, 130), (picture, 300), scaled, latent, seen, positive, negative, empty]
    drawing = Drawing(positive, negative, empty, shown, 1.0, 20)
    return workflow(
        sheet, about, parts, [pictures], [own], rollouts, drawing, "flux_kontext", models=[parts.model]
    )


def qwen_image_edit_lora() -> dict[str, Any]:
    """Qwen-Image-Edit: the reference goes to the network, and to draw also to the text encoder."""
    sheet = Sheet()
    unet = file("Qwen-Image-Edit_ComfyUI", "diffusion_models", "qwen_image_edit_2511_fp8mixed.safetensors")
    clip = file("HunyuanVideo_1.5_repackaged", "text_encoders", "qwen_2.5_vl_7b_fp8_scaled.safetensors")
    vae = file("Qwen-Image_ComfyUI", "vae", "qwen_image_vae.safetensors")
    parts = loaded(sheet, "Qwen-Image-Edit", unet, clip, "qwen_image", vae)
    parts = shifted(sheet, parts, 3.1)
    about = note(
        "# Qwen-Image-Edit, edit pairs\n"
        "Teaches Qwen-Image-Edit an edit from pairs of pictures, and edits a picture with the result. The older files "
        "(2509, and the first) go the same way.\n\n"
        f"{PAIRS}\n\n"
        "**Change** both folders in 2, and the instruction and the picture in 6.\n\n"
        f"**Memory** The fp8 network is 20 GB: 1024 pixels need more than 24 GB, 512 about that. {MEMORY}\n\n"
        f"{RECIPE}\n\n{ROLLOUTS} The reference is seen in every step of a rollout.\n\n{STOP}", 430)  # fmt: skip
    rollouts = modest_rollouts(sheet, 20)
    pictures = pairs(sheet)
    own = trained(sheet, parts, pictures, rollouts, recipe="Qwen-Image-Edit: edit", name="qwen_image_edit")
    picture = sheet.put("LoadImage", "Picture to edit", BROWN, image=EXAMPLE)
    shared = {"clip": parts.clip, "vae": parts.vae, "image1": picture}
    positive = sheet.put("TextEncodeQwenImageEditPlus", "Instruction", BROWN, prompt=EDIT, **shared)
    negative = sheet.put("TextEncodeQwenImageEditPlus", "Negative", prompt="", **shared)
    empty = size(sheet, "EmptySD3LatentImage", 1024, pictures=1)
    drawing = Drawing(
        positive, negative, empty, [(picture, 300), (positive, 150), (negative, 130), empty], 3.0, 20
    )
    return workflow(
        sheet, about, parts, [pictures], [own], rollouts, drawing, "qwen_image_edit", models=[parts.model]
    )


# -- two models that share the noise levels -------------------------------------------------------------


WAN22 = "Wan_2.2_ComfyUI_Repackaged"


def wan22(
    kind: str,
    about: Item,
    pictures: Callable[[Sheet], Link],
    recipes: Sequence[str],
    drawn: Callable[[Sheet, Loaded], Drawing],
    name: str,
    split: int,
) -> dict[str, Any]:
    """Wan 2.2 14B, its two models trained in turn and drawing in turn.

    Args:
        kind: of its files: t2v or i2v.
        recipes: of high and of low noise.
        split: the step of 20 at which the model of low noise goes on.
    """
    sheet = Sheet()
    high, low = (
        file(WAN22, "diffusion_models", f"wan2.2_{kind}_{what}_noise_14B_fp8_scaled.safetensors")
        for what in ("high", "low")
    )
    parts = loaded(
        sheet, "Wan 2.2, high noise", high, UMT5, "wan", file(WAN22, "vae", "wan_2.1_vae.safetensors")
    )
    other = sheet.put(
        "UNETLoader", "Wan 2.2, low noise", unet_name=low[0], weight_dtype="default", models=[low]
    )
    models = [
        sheet.put("ModelSamplingSD3", f"Shift of {what} noise", model=model, shift=5.0)
        for what, model in (("high", parts.model), ("low", other))
    ]
    nodes = [parts.nodes[0], other, *parts.nodes[1:], *models]
    first, second = (Loaded(model, parts.clip, parts.vae, nodes) for model in models)
    rollouts = modest_rollouts(sheet, 20)
    data = pictures(sheet)
    own = trained(sheet, first, data, rollouts, recipe=recipes[0], name=f"{name}_high", what=", high noise")
    then = trained(
        sheet, second, data, rollouts, recipe=recipes[1], name=f"{name}_low", what=", low noise", data=own.data
    )  # fmt: skip
    return workflow(
        sheet, about, first, [data], [own, then], rollouts, drawn(sheet, first), name, split=split, models=models
    )  # fmt: skip


IN_TURN = (
    "**In turn** Each recipe keeps its model to its own noise levels (sigma above or below {}), in rollouts as well. "
    "To "
    "train one only, bypass (Ctrl+B) the other's *Train* and all that follows from it."
)


def wan22_lora() -> dict[str, Any]:
    """Text to video, on pictures."""
    about = note(
        "# Wan 2.2, high and low noise\n"
        "Wan 2.2 14B is two models: one draws the first steps, where there is much noise, the other the rest. This "
        "trains a LoRA for each, one after the other, on *pictures* (films of one frame), and draws with both. The "
        "LoRAs "
        "work in your film workflows, too: each on its own model.\n\n"
        f"{CHANGE}\n\n"
        f"{IN_TURN.format(0.875)}\n\n"
        f"**Memory** One model is in memory at a time, 14 GB in fp8: 512 pixels should suit 24 GB. {MEMORY}\n\n"
        f"{RECIPE}\n\n{ROLLOUTS}\n\n{STOP}", 520)  # fmt: skip

    def drawn(sheet: Sheet, parts: Loaded) -> Drawing:
        positive, negative = texts(sheet, parts.clip)
        empty = size(sheet, "EmptyHunyuanLatentVideo", 512, length=1)
        return Drawing(positive, negative, empty, [(positive, 130), (negative, 100), empty], 3.5, 20)

    recipes = [f"Wan 2.2 14B {what} noise, text: style" for what in ("high", "low")]
    return wan22("t2v", about, blobs, recipes, drawn, "wan22", 8)


HOP = "a hopping grinning face, blob style, white background"


def clips(sheet: Sheet, **inputs: Any) -> Link:
    """The clips that come with the pack."""
    return sheet.put("RolloutDatasetFromFolder", "Your clips", BROWN, folder="demo/clips", **inputs)


def wan22_image_to_video_lora() -> dict[str, Any]:
    """Image to video, on clips, of which it is given the first frame."""
    about = note(
        "# Wan 2.2 image-to-video, from clips\n"
        "Teaches Wan 2.2 14B a movement from short clips: of each it is given the first frame and makes the rest. "
        "Its two "
        "models, for high and for low noise, get a LoRA each, one after the other; then both draw a clip from a "
        "picture. "
        "Opens with four clips of a second, to try it.\n\n"
        "**Change** the folder in 2 (`jump.mp4` beside `jump.txt`; gif and webp too), and the prompt and the picture "
        "in "
        "6. 10 to 30 clips are plenty. *clip_frames* is the length of a sample: 33 is two seconds.\n\n"
        f"{IN_TURN.format(0.9)}\n\n"
        f"**Memory** One model is in memory at a time, 14 GB in fp8. 33 frames at 512 pixels need more than 24 GB, "
        f"17 at "
        f"384 about that. {MEMORY}\n\n"
        f"{RECIPE}\n\n{ROLLOUTS} The first frame is seen in every step of a rollout.\n\n{STOP}", 540)  # fmt: skip

    def drawn(sheet: Sheet, parts: Loaded) -> Drawing:
        positive, negative = texts(sheet, parts.clip, HOP)
        picture = sheet.put("LoadImage", "First frame", BROWN, image=EXAMPLE)
        given = sheet.put(
            "WanImageToVideo", "Size, and what it is given", positive=positive, negative=negative, vae=parts.vae,
            start_image=picture, width=512, height=512, length=33, batch_size=1,
        )  # fmt: skip
        shown = [(positive, 130), (negative, 100), (picture, 300), given]
        return Drawing(given, [given[0], 1], [given[0], 2], shown, 3.5, 20, 16.0)

    recipes = [f"Wan 2.2 14B {what} noise, image: video" for what in ("high", "low")]
    given = {"clip_frames": 17, "clip_gives": "start frame"}
    return wan22("i2v", about, lambda sheet: clips(sheet, **given), recipes, drawn, "wan22_i2v", 7)


# -- clips ---------------------------------------------------------------------------------------------


def ltx2_lora() -> dict[str, Any]:
    """LTX-2 on clips, without their sound."""
    sheet = Sheet()
    name, encoder = "ltx-2-19b-dev-fp8.safetensors", "gemma_3_12B_it_fp4_mixed.safetensors"
    whole = (name, "checkpoints", f"Lightricks/LTX-2/resolve/main/{name}")
    checkpoint = sheet.put("CheckpointLoaderSimple", "LTX-2", ckpt_name=name, models=[whole])
    clip = sheet.put(
        "LTXAVTextEncoderLoader", "Its text encoder", text_encoder=encoder, ckpt_name=name, device="default",
        models=[file("ltx-2", "text_encoders", encoder), whole],
    )  # fmt: skip
    parts = Loaded(checkpoint, clip, [checkpoint[0], 2], [checkpoint, clip])
    about = note(
        "# LTX-2 LoRA, from clips\n"
        "Teaches LTX-2 a movement or a look from short clips, and draws clips with the result. Sound is not trained. "
        "Opens with four clips of a second, to try it.\n\n"
        "**Change** the folder in 2 (`jump.mp4` beside `jump.txt`; gif and webp too; pictures are clips of one frame), "
        "and the prompt. 10 to 30 clips are plenty. *clip_frames* is the length of a sample: 49 is two seconds.\n\n"
        f"**Memory** The fp8 network is 20 GB: 25 frames at 512 pixels need more than 24 GB. {MEMORY}\n\n"
        f"{RECIPE}\n\n{ROLLOUTS}\n\n{STOP}", 460)  # fmt: skip
    rollouts = modest_rollouts(sheet, 20)
    data = clips(sheet, clip_frames=25)
    own = trained(sheet, parts, data, rollouts, recipe="LTX-2: video", name="ltx2")
    positive, negative = texts(sheet, clip, HOP)
    rate = sheet.put("LTXVConditioning", "Frame rate", positive=positive, negative=negative, frame_rate=25.0)
    empty = sheet.put("EmptyLTXVLatentVideo", "Size", width=768, height=512, length=49, batch_size=1)
    shown = [(positive, 130), (negative, 100), rate, empty]
    drawing = Drawing(rate, [rate[0], 1], empty, shown, 4.0, 20, 25.0)
    return workflow(sheet, about, parts, [data], [own], rollouts, drawing, "ltx2", models=[checkpoint])


FAMILY_WORKFLOWS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "flux-kontext-pairs-lora": flux_kontext_lora,
    "qwen-image-edit-pairs-lora": qwen_image_edit_lora,
    "flux2-klein-lora": flux2_klein_lora,
    "z-image-lora": z_image_lora,
    "wan22-high-low-lora": wan22_lora,
    "wan22-image-to-video-lora": wan22_image_to_video_lora,
    "ltx2-clips-lora": ltx2_lora,
}
