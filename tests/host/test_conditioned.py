"""Models that are given pictures, and two that share the noise levels, from data to drawing in a real ComfyUI.

What they are given comes through ComfyUI's own nodes: Reference Latent, Wan Image to Video, Wan22 Image to Video
Latent. The data is such that the given picture alone tells the samples apart, and the tiny networks learn it: so what
is drawn after training shows whether the picture was seen.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from comfyui_process import ComfyUI
from numpy.typing import NDArray
from PIL import Image
from prompt_builder import Link, PromptBuilder

Outputs = dict[str, Any]
Pictures = NDArray[np.float64]
TIMEOUT = 1200.0
"""Seconds: each training is a minute of one core."""
pytestmark = pytest.mark.timeout(1500)
STEPS = 400
"""Of a training that learns the data."""
COLOURS = 4
"""Samples of the data."""


class Graph(PromptBuilder):
    """A graph with the nodes that all of these tests share."""

    def text(self, family: str, text: Link | str) -> Link:
        """Core's own encoding of a caption, by a tiny CLIP."""
        return self.add("CLIPTextEncode", clip=self.add("TestTinyClip", family=family), text=text)

    def data(self, source: Link, latents: Link, conditioning: Link, empty: Link) -> Link:
        """The samples to train on."""
        return self.add(
            "RolloutDatasetFromLatents", model=source, latents=latents, conditioning=conditioning, empty=empty
        )

    def train(self, source: Link, data: Link, name: str, steps: int, rank: int = 64, **settings: Any) -> Link:
        """A training with rollouts and films, of every layer."""
        lora = self.add("RolloutLoRASettings", rank=rank, alpha=float(rank), preset="all")
        rollouts = self.add("RolloutScheduledSampling", max_step_offset=2, probability=0.5)
        optimizer = self.add("RolloutOptimizerSettings", learning_rate=2e-3, schedule="cosine")
        return self.add(
            "RolloutTrainLoRA", model=source, data=data, lora=lora, optimizer=optimizer,
            scheduled_sampling=rollouts, steps=steps, batch_size=COLOURS, caption_dropout=0.1, seed=3,
            preview_every=steps, run_name=name, **settings,
        )  # fmt: skip

    def sigmas(self, model: Link, steps: int = 8) -> Link:
        """Noise levels to draw at."""
        return self.add("BasicScheduler", model=model, scheduler="simple", steps=steps, denoise=1.0)

    def sampled(
        self, model: Link, positive: Link, negative: Link, latent: Link, sigmas: Link, add_noise: bool = True
    ) -> Link:
        """Core's own sampling, without guidance."""
        sampler = self.add("KSamplerSelect", sampler_name="euler")
        return self.add(
            "SamplerCustom", model=model, positive=positive, negative=negative, latent_image=latent,
            sampler=sampler, sigmas=sigmas, cfg=1.0, noise_seed=11, add_noise=add_noise,
        )  # fmt: skip

    def strips(self, run: Link, data: Link, name: str) -> str:
        """A rollout of each sample, saved to be looked at."""
        rollouts = self.add("RolloutScheduledSampling", steps_per_trajectory=6, max_step_offset=6)
        return self.shown(
            self.add(
                "RolloutPreview", model=[run[0], 1], data=data, scheduled_sampling=rollouts, samples=COLOURS,
                steps=6, target=0.0,
            ),
            name,
        )  # fmt: skip

    def shown(self, images: Link, name: str) -> str:
        """The node that saves pictures."""
        return str(self.add("SaveImage", images=images, filename_prefix=f"conditioned/{name}")[0])


def pictures(host: ComfyUI, outputs: Outputs, node: str) -> Pictures:
    """What a node has saved, [N, H, W, 3] from 0 to 1."""
    files = [Image.open(io.BytesIO(host.view(file))).convert("RGB") for file in outputs[node]["images"]]
    return np.stack([np.asarray(file, np.float64) / 255 for file in files])


def nearest(drawn: Pictures, wanted: Pictures) -> list[int]:
    """For each drawn picture or clip the number of the wanted one that it is most like."""
    return [int(np.argmin([np.square(one - other).mean() for other in wanted])) for one in drawn]


def alike(drawn: Pictures, wanted: Pictures) -> list[int]:
    """For each drawn picture the number of the wanted one that differs from the others most as it does."""
    a, b = ((seen - seen.mean(0)).reshape(len(seen), -1) for seen in (drawn, wanted))
    return [int(i) for i in (a @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T).argmax(1)]


def validation(outputs: Outputs, node: Link) -> float:
    """The loss that Validate shows."""
    return float(outputs[node[0]]["text"][0].split(": ")[1])


def watched(outputs: Outputs, node: Link) -> list[dict[str, Any]]:
    """The calls of a model's network."""
    return list(outputs[node[0]]["calls"])


# -- a picture to be edited --------------------------------------------------------------------------


def edit(graph: Graph, turned: int = 0) -> tuple[Link, Link, Link, Link]:
    """Pairs as a VAE, latents, captions with their references, and a caption without text but with a reference."""
    pairs = graph.add("TestPairs", turned=turned)
    vae = graph.add("TestPatchVae")
    after, before = (graph.add("VAEEncode", pixels=[pairs[0], i], vae=vae) for i in (0, 1))
    captions = graph.add("ReferenceLatent", conditioning=graph.text("flux", [pairs[0], 2]), latent=before)
    return vae, after, captions, graph.text("flux", "")


@pytest.fixture(scope="module")
def edited(comfyui: ComfyUI) -> tuple[Outputs, dict[str, Any]]:
    """A tiny Flux Kontext trained on pairs, and drawn with."""
    graph = Graph(comfyui.object_info())
    base = graph.add("TestFamily", family="flux_kontext", seed=0)
    watch = graph.add("TestWatch", model=base, name="kontext")
    vae, after, captions, empty = edit(graph)
    source = graph.add("RolloutFromComfyModel", model=watch, vae=vae)
    data = graph.data(source, after, captions, empty)
    run = graph.train(source, data, "kontext", STEPS)
    _, _, swapped, _ = edit(graph, turned=1)
    losses = [
        graph.add("RolloutValidate", run=run, data=graph.data(source, after, conds, empty))
        for conds in (captions, swapped)
    ]
    for link in losses:
        graph.add("PreviewAny", source=link)
    told = graph.add("TestWatched", name="kontext", after=losses[0])
    adapted = graph.add("RolloutApplyLoRA", model=base, run=run)
    drawn = graph.sampled(adapted, captions, empty, after, graph.sigmas(base))
    ids = {
        "losses": losses,
        "told": told,
        "strips": graph.strips(run, data, "strip-kontext"),
        "drawn": graph.shown(graph.add("VAEDecode", samples=drawn, vae=vae), "edited"),
        "wanted": graph.shown([graph.add("TestPairs")[0], 0], "after"),
    }
    return comfyui.queue(graph.prompt, TIMEOUT)["outputs"], ids


def test_a_trained_edit_model_draws_what_its_reference_asks_for(
    comfyui: ComfyUI, edited: tuple[Outputs, dict[str, Any]]
) -> None:
    outputs, ids = edited
    drawn, wanted = (pictures(comfyui, outputs, ids[name]) for name in ("drawn", "wanted"))
    assert nearest(drawn, wanted) == list(range(COLOURS))


def test_another_reference_is_another_loss(edited: tuple[Outputs, dict[str, Any]]) -> None:
    outputs, ids = edited
    own, swapped = (validation(outputs, node) for node in ids["losses"])
    assert swapped > 1.2 * own


def test_every_call_has_the_reference_in_rollouts_too(edited: tuple[Outputs, dict[str, Any]]) -> None:
    outputs, ids = edited
    calls = watched(outputs, ids["told"])
    assert sum(len(call["sigmas"]) for call in calls) > 1.2 * COLOURS * STEPS  # rollouts are among them
    seen = {name for call in calls for name in call["pictures"]["ref_latents"]}
    assert len(seen) == COLOURS


def test_the_run_was_filmed(comfyui: ComfyUI, edited: tuple[Outputs, dict[str, Any]]) -> None:
    films = comfyui.get_json("/rollout_trainer/runs/kontext-0001/film")
    assert [film["step"] for film in films] == [0, STEPS]


# -- a film that begins with a picture ---------------------------------------------------------------

FRAMES, SIDE = 9, 64


def image_to_video(graph: Graph, kind: str, turned: int = 0) -> tuple[Link, Link, Link, Link, Link]:
    """Clips and their first frames as a VAE, latents, captions, a caption without text, and latents to draw from."""
    clips = graph.add("TestClips", frames=FRAMES, side=SIDE, turned=turned)
    size = {"width": SIDE, "height": SIDE, "length": FRAMES, "batch_size": 1}
    text, empty = graph.text("short", [clips[0], 2]), graph.text("short", "")
    first = [clips[0], 1]
    if kind == "14B":
        vae = graph.add("TestPatchVae", video=True)
        given = graph.add(
            "WanImageToVideo", positive=text, negative=empty, vae=vae, start_image=first, **size
        )
        latents = graph.add("VAEEncode", pixels=clips, vae=vae)
        return vae, latents, given, empty, [given[0], 2]
    vae = graph.add("TestPatchVae", channels=48, factor=16, video=True)
    start = graph.add("Wan22ImageToVideoLatent", vae=vae, start_image=first, **size)
    # The clip's latent with the noise mask that says which frames are given.
    whole = graph.add("VAEEncode", pixels=clips, vae=vae)
    latents = graph.add("LatentBlend", samples1=start, samples2=whole, blend_factor=0.0)
    return vae, latents, text, empty, start


RANK = 192
"""As many as there are values in a patch of the latents of Wan 2.2 5B."""
VIDEO = {"14B": "wan22_i2v_14b", "5B": "wan22_5b_i2v"}


@pytest.fixture(scope="module", params=VIDEO)
def filmed(request: pytest.FixtureRequest, comfyui: ComfyUI) -> tuple[str, Outputs, dict[str, Any]]:
    """A tiny Wan 2.2 trained on clips that begin with a given frame, and drawn with."""
    kind = request.param
    graph = Graph(comfyui.object_info())
    base = graph.add("TestFamily", family=VIDEO[kind], seed=0, wide=True)
    watch = graph.add("TestWatch", model=base, name=kind)
    vae, latents, captions, empty, start = image_to_video(graph, kind)
    source = graph.add("RolloutFromComfyModel", model=watch, vae=vae)
    data = graph.data(source, latents, captions, empty)
    run = graph.train(source, data, f"wan-{kind}", STEPS, rank=RANK)
    _, other_latents, other, _, _ = image_to_video(graph, kind, turned=1)
    other_latents = latents if kind == "14B" else other_latents  # there it is the latent's own first frame
    losses = [
        graph.add("RolloutValidate", run=run, data=graph.data(source, own, conds, empty))
        for own, conds in ((latents, captions), (other_latents, other))
    ]
    for link in losses:
        graph.add("PreviewAny", source=link)
    told = graph.add("TestWatched", name=kind, after=losses[0])
    adapted = graph.add("RolloutApplyLoRA", model=base, run=run)
    drawn = graph.sampled(adapted, captions, empty, start, graph.sigmas(base))
    ids = {
        "losses": losses,
        "told": told,
        "strips": graph.strips(run, data, f"strip-{kind}"),
        "drawn": graph.shown(graph.add("VAEDecode", samples=drawn, vae=vae), f"film-{kind}"),
        "wanted": graph.shown(graph.add("VAEDecode", samples=latents, vae=vae), f"clip-{kind}"),
    }
    return kind, comfyui.queue(graph.prompt, TIMEOUT)["outputs"], ids


def test_a_trained_video_model_begins_with_the_picture_that_it_is_given(
    comfyui: ComfyUI, filmed: tuple[str, Outputs, dict[str, Any]]
) -> None:
    """14B has learnt to; of 5B the frame is held. What comes after takes a larger network than this to learn."""
    kind, outputs, ids = filmed
    drawn, wanted = (pictures(comfyui, outputs, ids[name]) for name in ("drawn", "wanted"))
    drawn, wanted = (seen.reshape(COLOURS, -1, *seen.shape[1:])[:, 0] for seen in (drawn, wanted))
    assert alike(drawn, wanted) == list(range(COLOURS))
    if kind == "5B":
        assert np.abs(drawn - wanted).max() <= 2 / 255


def test_another_picture_is_another_loss(filmed: tuple[str, Outputs, dict[str, Any]]) -> None:
    kind, outputs, ids = filmed
    own, swapped = (validation(outputs, node) for node in ids["losses"])
    assert swapped > 1.05 * own if kind == "14B" else swapped != own


def test_every_call_has_the_picture_in_rollouts_too(filmed: tuple[str, Outputs, dict[str, Any]]) -> None:
    kind, outputs, ids = filmed
    calls = watched(outputs, ids["told"])
    assert sum(len(call["sigmas"]) for call in calls) > 1.2 * COLOURS * STEPS
    if kind == "14B":
        seen = {name for call in calls for name in call["pictures"]["c_concat"]}
        assert len(seen) == COLOURS
    else:  # the first frame of its states is the picture, at every noise level
        seen = {name for call in calls for name in call["first"]}
        assert len(seen) == COLOURS


# -- two models that share the noise levels ------------------------------------------------------------

BOUNDARY = 0.875
SHIFT = 5.0
HIGH = 4
"""Of the 8 noise levels at which it draws, those of the model of high noise: at this shift the fifth is below."""


@pytest.fixture(scope="module")
def experts(comfyui: ComfyUI) -> tuple[Outputs, dict[str, Any]]:
    """Two tiny Wan trained in turn on the same clips, each on its own noise levels, and drawing in turn."""
    graph = Graph(comfyui.object_info())
    clips = graph.add("TestClips", frames=FRAMES, side=SIDE)
    vae = graph.add("TestPatchVae", video=True)
    text, empty = graph.text("short", "a square goes to the right"), graph.text("short", "")
    latents = graph.add("VAEEncode", pixels=clips, vae=vae)
    ids: dict[str, Any] = {"told": {}, "runs": {}}
    models: dict[str, tuple[Link, Link]] = {}
    for seed, what in enumerate(("high", "low")):
        base = graph.add("TestFamily", family="wan21_t2v", seed=seed, wide=True)
        base = graph.add("ModelSamplingSD3", model=base, shift=SHIFT)
        watch = graph.add("TestWatch", model=base, name=what)
        source = graph.add("RolloutFromComfyModel", model=watch, vae=vae)
        data = graph.data(source, latents, text, empty)
        levels = graph.add(
            "RolloutTimestepSettings", **{"sigma_low" if what == "high" else "sigma_high": BOUNDARY}
        )
        run = graph.train(source, data, f"expert-{what}", EXPERT_STEPS, rank=RANK, timesteps=levels)
        loss = graph.add("RolloutValidate", run=run, data=data)
        graph.add("PreviewAny", source=loss)
        ids["told"][what] = graph.add("TestWatched", name=what, after=loss)
        models[what] = base, graph.add("RolloutApplyLoRA", model=base, run=run)
    sigmas = graph.add("SplitSigmas", sigmas=graph.sigmas(models["high"][0]), step=HIGH)
    start = graph.add("EmptyHunyuanLatentVideo", width=SIDE, height=SIDE, length=FRAMES, batch_size=1)
    for name, place in (("before", 0), ("after", 1)):
        half = graph.sampled(models["high"][place], text, empty, start, sigmas)
        whole = graph.sampled(models["low"][place], text, empty, half, [sigmas[0], 1], add_noise=False)
        ids[name] = graph.shown(graph.add("VAEDecode", samples=whole, vae=vae), f"experts-{name}")
    graph.add("TestShowSigmas", sigmas=sigmas)
    ids["wanted"] = graph.shown(graph.add("VAEDecode", samples=latents, vae=vae), "experts-clip")
    return comfyui.queue(graph.prompt, TIMEOUT)["outputs"], ids


EXPERT_STEPS = 200


def test_each_of_two_models_is_called_at_its_own_noise_levels_alone(
    experts: tuple[Outputs, dict[str, Any]],
) -> None:
    outputs, ids = experts
    seen = {
        what: [level for call in watched(outputs, told) for level in call["sigmas"]]
        for what, told in ids["told"].items()
    }
    assert min(seen["high"]) >= BOUNDARY - 1e-5
    assert max(seen["low"]) <= BOUNDARY + 1e-5
    for levels in seen.values():  # in rollouts, films and validation too
        assert len(levels) > 1.1 * COLOURS * EXPERT_STEPS


def test_two_trained_models_draw_a_clip_of_the_data_in_turn(
    comfyui: ComfyUI, experts: tuple[Outputs, dict[str, Any]]
) -> None:
    outputs, ids = experts
    before, after, wanted = (pictures(comfyui, outputs, ids[name]) for name in ("before", "after", "wanted"))
    clips = wanted.reshape(COLOURS, -1, *wanted.shape[1:])
    far, near = (min(np.square(drawn - clip).mean() for clip in clips) for drawn in (before, after))
    assert near < 0.8 * far
