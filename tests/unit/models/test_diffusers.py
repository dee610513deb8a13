"""Pipeline folders as training models, against diffusers itself. The folders are tiny, random and built here."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    StableDiffusion3Pipeline,
)
from safetensors.torch import load_file
from tiny_pipelines import BUILDERS, CAPTIONS, LENGTH, PIPELINES, sd, sd3, unet
from torch import nn

from rollout_trainer.samplers import integrate
from rollout_trainer.training.forms import to_denoised
from rollout_trainer.training.lora.adapter import Adapter, AdapterState, LoRAConfig, attached
from rollout_trainer.training.models.families import load_diffusers
from rollout_trainer.training.models.source import LoadedModel


@pytest.fixture(params=list(BUILDERS))
def family(request):
    return request.param


def latents(n=3, dtype=torch.float32):
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=dtype)


# --- text, pictures, network: as the pipelines do it ----------------------------------------------


def pipeline(folders, family):
    """diffusers' own reading of a folder."""
    absent = {"text_encoder_3": None, "tokenizer_3": None} if family == "sd3" else {}
    pipe = PIPELINES[family].from_pretrained(folders / family, **absent)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_sd3_text_is_the_pipelines_own(folders):
    pipe = pipeline(folders, "sd3")
    context, _, pooled, _ = pipe.encode_prompt(CAPTIONS, None, None, max_sequence_length=0)
    cond = load_diffusers(folders / "sd3").encode_text(CAPTIONS)
    assert context.shape == (3, LENGTH, 40)
    torch.testing.assert_close(cond["context"], context)
    torch.testing.assert_close(cond["pooled"], pooled)


def test_sd3_text_with_t5_is_the_pipelines_own(tmp_path):
    sd3(tmp_path, with_t5=True)
    pipe = StableDiffusion3Pipeline.from_pretrained(tmp_path)
    context, _, _, _ = pipe.encode_prompt(CAPTIONS, None, None, max_sequence_length=LENGTH)
    torch.testing.assert_close(load_diffusers(tmp_path).encode_text(CAPTIONS)["context"], context)


def test_flux_text_is_the_pipelines_own(folders):
    pipe = pipeline(folders, "flux")
    context, pooled, _ = pipe.encode_prompt(CAPTIONS, CAPTIONS, max_sequence_length=LENGTH)
    cond = load_diffusers(folders / "flux").encode_text(CAPTIONS)
    torch.testing.assert_close(cond["context"], context)
    torch.testing.assert_close(cond["pooled"], pooled)


def test_unet_texts_are_the_pipelines_own(folders):
    context, _ = pipeline(folders, "sd").encode_prompt(CAPTIONS, "cpu", 1, False)
    torch.testing.assert_close(load_diffusers(folders / "sd").encode_text(CAPTIONS)["context"], context)
    pipe = pipeline(folders, "sdxl")
    context, _, pooled, _ = pipe.encode_prompt(CAPTIONS, do_classifier_free_guidance=False)
    cond = load_diffusers(folders / "sdxl").encode_text(CAPTIONS)
    torch.testing.assert_close(cond["context"], context)
    torch.testing.assert_close(cond["pooled"], pooled)


def test_a_caption_does_not_depend_on_its_neighbours(folders, family):
    model = load_diffusers(folders / family)
    together, alone = model.encode_text(CAPTIONS), model.encode_text(CAPTIONS[1:2])
    for name, value in alone.items():
        assert torch.equal(together[name][1:2], value)


def test_latents_are_shifted_and_scaled_means_of_the_encoder(folders, family):
    model = load_diffusers(folders / family)
    pixels = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    coded = model.encode_images(pixels)
    assert coded.shape[1:] == model.latent_shape(16, 24) == (4, 8, 12)
    mean = model.vae.encode(pixels * 2 - 1).latent_dist.mean
    torch.testing.assert_close(coded, (mean - 0.25) * 0.5)
    decoded = (model.vae.decode(mean).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(model.decode_latents(coded), decoded)


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_flow_networks_are_called_as_the_pipelines_call_them(folders, name):
    """One forward of the network, caught inside a run of the pipeline, gives what `predict` gives."""
    model = load_diffusers(folders / name)
    pipe = pipeline(folders, name)
    seen = []
    transformer = pipe.transformer
    transformer.register_forward_hook(
        lambda m, a, kwargs, out: seen.append((kwargs, out[0])), with_kwargs=True
    )
    pipe(
        ["a red cat"], guidance_scale=3.5 if name == "flux" else 1.0, height=16, width=24, num_inference_steps=2,
        max_sequence_length=0 if name == "sd3" else LENGTH, output_type="latent",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    kwargs, velocity = seen[1]
    x, t = kwargs["hidden_states"], kwargs["timestep"]
    sigma = t / 1000 if name == "sd3" else t
    if name == "flux":
        x, velocity = (FluxPipeline._unpack_latents(v, 16, 24, 2) for v in (x, velocity))
    got = model.denoiser().predict(x, sigma, model.encode_text(["a red cat"]))
    torch.testing.assert_close(got, velocity, rtol=1e-5, atol=1e-6)


def test_sdxl_is_told_text_and_size_as_the_pipeline_tells_it(folders):
    model = load_diffusers(folders / "sdxl")
    pipe = pipeline(folders, "sdxl")
    seen = []
    pipe.unet.register_forward_hook(
        lambda m, a, kwargs, out: seen.append((a, kwargs, out[0])), with_kwargs=True
    )
    pipe(["a red cat"], guidance_scale=1.0, height=16, width=24, num_inference_steps=2, output_type="latent")
    (scaled, timestep), kwargs, epsilon = seen[1]
    sigma = model.schedule.sigma((timestep.double() + 1) / 1000).reshape(1)
    x = (scaled.double() * (1 + sigma**2).sqrt()).float()
    got = model.denoiser().predict(x, sigma.float(), model.encode_text(["a red cat"]))
    torch.testing.assert_close(got, epsilon, rtol=1e-4, atol=1e-5)
    assert kwargs["added_cond_kwargs"]["time_ids"].tolist() == [[16, 24, 0, 0, 16, 24]]


# --- noise schedules, and sampling in the VE form -------------------------------------------------


def test_the_scheduler_decides_process_and_shift(folders, caplog):
    assert load_diffusers(folders / "sd3").schedule.shift == 3.0
    with caplog.at_level(logging.INFO):
        model = load_diffusers(folders / "flux")
    assert model.schedule.shift == pytest.approx(3.1582, abs=1e-4)
    assert "dynamic shifting" in caplog.text
    assert model.prediction == "flow"


def test_flow_shift_is_the_schedulers(folders):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    u = torch.arange(1000, 0, -1) / 1000
    torch.testing.assert_close(load_diffusers(folders / "sd3").schedule.sigma(u), scheduler.sigmas[:1000])


def double(folder, prediction):
    """A UNet model in float64 and its cond, which is encoded in float32: older CLIPs have no float64 mask."""
    sd(folder, prediction)
    cond = load_diffusers(folder).encode_text(CAPTIONS)
    return load_diffusers(folder, dtype=torch.float64), {name: value.double() for name, value in cond.items()}


def solve(model, cond, x, sigmas):
    """Euler in the VE form, with our solver and our conversions."""
    denoiser = model.denoiser()

    def denoise(x, sigma, rows):
        return to_denoised(model.prediction, x, sigma, denoiser.predict(x, sigma, cond))

    return integrate(denoise, x, sigmas, "euler", process="ve")


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_sampling_equals_the_euler_scheduler(tmp_path, prediction):
    model, cond = double(tmp_path, prediction)
    scheduler = EulerDiscreteScheduler.from_config(model.folder.config("scheduler"))
    scheduler.set_timesteps(6)
    assert model.prediction == {"epsilon": "epsilon", "v_prediction": "v"}[prediction]
    x = start = latents(dtype=torch.float64) * scheduler.sigmas[0]
    for t in scheduler.timesteps:
        output = model.module(scheduler.scale_model_input(x, t), t, cond["context"]).sample
        x = scheduler.step(output, t, x).prev_sample
    ours = solve(model, cond, start, scheduler.sigmas.double())
    assert (ours - x).abs().max() < 1e-6 * x.abs().max()  # its sigmas are float32


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_sampling_equals_ddim(tmp_path, prediction):
    """DDIM at eta 0 is Euler in the VE form: the same states but for the factor sqrt(alphas_cumprod)."""
    model, cond = double(tmp_path, prediction)
    scheduler = DDIMScheduler.from_config(model.folder.config("scheduler"), timestep_spacing="trailing")
    scheduler.set_timesteps(5)  # a divisor of 1000: DDIM's stride is a whole number
    alphas = scheduler.alphas_cumprod.double()
    levels = model.schedule.sigma((scheduler.timesteps.double() + 1) / 1000)
    last = ((1 - alphas[0]) / alphas[0]).sqrt()  # what set_alpha_to_one=False steps to
    start = latents(dtype=torch.float64)
    x = start
    for t in scheduler.timesteps:
        output = model.module(x, t, cond["context"]).sample
        x = scheduler.step(output, t, x, eta=0.0).prev_sample
    ours = solve(model, cond, start * (1 + levels[0] ** 2).sqrt(), torch.cat([levels, last[None]]))
    ours = ours * alphas[0].sqrt()
    assert (ours - x).abs().max() < 1e-6 * x.abs().max()


def test_unet_timesteps_are_exact_on_the_table(folders):
    model = load_diffusers(folders / "sd")
    seen = []
    hook = model.module.register_forward_pre_hook(lambda m, args: seen.append(args[1]))
    n = torch.tensor([0, 499, 999])
    model.denoiser().predict(latents(), model.schedule.sigmas[n].float(), model.encode_text(CAPTIONS))
    hook.remove()
    torch.testing.assert_close(seen[0], n.float(), atol=1e-3, rtol=0)


def test_zero_terminal_snr_gives_a_finite_table(folders, tmp_path):
    shutil.copytree(folders / "sd", tmp_path / "m")
    edit(tmp_path / "m/scheduler/scheduler_config.json", rescale_betas_zero_snr=True)
    assert load_diffusers(tmp_path / "m").schedule.sigmas[-1] == pytest.approx(4096, rel=1e-3)


# --- the module ------------------------------------------------------------------------------------


def test_the_network_is_frozen_and_always_the_same(folders, family):
    model = load_diffusers(folders / family)
    denoiser = model.denoiser()
    assert denoiser.module is model.denoiser(torch.bfloat16).module is model.module
    assert not denoiser.module.training
    assert not any(p.requires_grad for p in denoiser.module.parameters())


def test_autocast_stays_near_and_keeps_the_states_dtype(folders, family):
    model = load_diffusers(folders / family)
    x, sigma, cond = latents(), torch.tensor([0.2, 0.5, 0.9]), model.encode_text(CAPTIONS)
    plain = model.denoiser().predict(x, sigma, cond)
    half = model.denoiser(torch.bfloat16).predict(x, sigma, cond)
    assert half.dtype == torch.float32
    assert 0 < (half - plain).norm() < 0.03 * plain.norm()


def test_a_half_precision_base_takes_float32_states(folders, family):
    model = load_diffusers(folders / family, dtype=torch.bfloat16)
    assert next(model.module.parameters()).dtype == torch.bfloat16
    out = model.denoiser().predict(latents(), torch.tensor([0.2, 0.5, 0.9]), model.encode_text(CAPTIONS))
    assert out.dtype == torch.float32
    assert out.isfinite().all()


def test_what_is_made_under_inference_mode_can_be_trained_on(folders):
    with torch.inference_mode():  # as ComfyUI runs its nodes
        model = load_diffusers(folders / "sd3")
        cond = model.encode_text(CAPTIONS)
        x0 = model.encode_images(torch.rand(3, 3, 16, 16))
    adapter = Adapter(model.module, LoRAConfig(targets=model.default_lora_targets))
    model.denoiser().predict(x0, torch.full((3,), 0.5), cond).square().mean().backward()
    assert all(p.grad is not None for p in adapter.parameters())


def test_fingerprint_tells_weights_and_settings_apart(folders, tmp_path):
    first = load_diffusers(folders / "sd").fingerprint
    assert load_diffusers(folders / "sd").fingerprint == first
    shutil.copytree(folders / "sd", tmp_path / "moved")
    assert load_diffusers(tmp_path / "moved").fingerprint == first
    edit(tmp_path / "moved/scheduler/scheduler_config.json", prediction_type="v_prediction")
    assert load_diffusers(tmp_path / "moved").fingerprint != first


def test_sizes_the_model_cannot_take_are_refused(folders):
    model = load_diffusers(folders / "sd3")
    assert (model.size_multiple, model.default_resolution, model.largest_side) == (4, 16, 32)
    with pytest.raises(ValueError, match="height must be a multiple of 4 for sd3, got 18"):
        model.latent_shape(18, 16)
    with pytest.raises(ValueError, match="width must be at most 32 for sd3, got 36"):
        model.latent_shape(32, 36)


# --- folders that are not right ---------------------------------------------------------------------


def edit(file: Path, **values):
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps(content))


def without_index(path):
    (path / "model_index.json").unlink()


def broken_index(path):
    (path / "model_index.json").write_text("{")


def unnamed(path):
    (path / "model_index.json").write_text("{}")


def other_pipeline(path):
    edit(path / "model_index.json", _class_name="LTXPipeline")


def without_transformer(path):
    shutil.rmtree(path / "transformer")


def null_transformer(path):
    edit(path / "model_index.json", transformer=[None, None])


def without_weights(path):
    (path / "transformer/diffusion_pytorch_model.safetensors").unlink()


def broken_weights(path):
    (path / "transformer/diffusion_pytorch_model.safetensors").write_bytes(b"no")


def without_vae(path):
    shutil.rmtree(path / "vae")


def without_text_encoder(path):
    edit(path / "model_index.json", text_encoder_2=[None, None])


def foreign_code(path):
    edit(path / "model_index.json", vae=["os", "system"])


def without_scheduler(path):
    (path / "scheduler/scheduler_config.json").unlink()


FAULTS = {
    without_index: "it must be a diffusers pipeline, but has no model_index.json",
    broken_index: "model_index.json must be valid JSON",
    unnamed: "model_index.json must name the pipeline",
    other_pipeline: "it must hold one of StableDiffusion3Pipeline, .* but holds a LTXPipeline",
    without_transformer: "it must hold a transformer, but has none",
    null_transformer: "it must hold a transformer, but has none",
    without_weights: "transformer must have .safetensors weights, found none",
    broken_weights: r"transformer \(SD3Transformer2DModel\) cannot be read",
    without_vae: "it must hold a vae, but has none",
    without_text_encoder: "it must hold a text_encoder_2, but has none",
    foreign_code: "vae must come from diffusers or transformers, got 'os'",
    without_scheduler: "scheduler must have a readable scheduler_config.json",
}


@pytest.mark.parametrize("spoil", FAULTS, ids=lambda f: f.__name__)
def test_a_wrong_folder_gives_one_line_with_its_name(folders, tmp_path, spoil):
    shutil.copytree(folders / "sd3", tmp_path / "model")
    spoil(tmp_path / "model")
    with pytest.raises(ValueError, match=FAULTS[spoil]) as caught:
        load_diffusers(tmp_path / "model")
    assert str(tmp_path / "model") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_gives_one_line(tmp_path):
    with pytest.raises(ValueError, match="it must exist, but there is no such folder"):
        load_diffusers(tmp_path / "none")


def test_inpainting_networks_are_refused(tmp_path):
    sd(tmp_path)
    unet(cross_attention_dim=16, in_channels=9).save_pretrained(tmp_path / "unet")
    with pytest.raises(ValueError, match="unet must take 4 channels, got 9"):
        load_diffusers(tmp_path)


def test_fp16_variants_are_found(folders, tmp_path):
    shutil.copytree(folders / "sd", tmp_path / "m")
    for part in ("unet", "vae", "text_encoder"):
        file = next((tmp_path / "m" / part).glob("*.safetensors"))
        file.rename(file.with_suffix("").with_suffix(".fp16.safetensors"))
    assert load_diffusers(tmp_path / "m").prediction == "epsilon"


def test_loading_draws_nothing(folders, capfd):
    load_diffusers(folders / "sd3")
    assert capfd.readouterr().err == ""


# --- LoRA files ------------------------------------------------------------------------------------


def trained(model, kind="lora", rank=4, alpha=3.0, targets=()):
    """An adapter with random weights, as if trained; alpha differs from rank."""
    config = LoRAConfig(kind, rank, alpha, targets=targets or model.default_lora_targets)
    adapter = Adapter(model.module, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in adapter.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.2)
    state = adapter.state()
    adapter.detach()
    return state


def outputs(model, cond):
    return model.denoiser().predict(latents(), torch.tensor([0.2, 0.5, 0.9]), cond)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_lora_files_load_in_diffusers(folders, tmp_path, family, kind, caplog):
    """The pipeline with the file gives what the trained adapter gave: largest difference 2e-6 of the norm."""
    if kind == "dora" and family in ("sd", "sdxl"):
        pytest.skip("diffusers drops dora_scale from files with kohya names, and says so")
    model = load_diffusers(folders / family)
    cond = model.encode_text(CAPTIONS)
    base = outputs(model, cond)
    state = trained(model, kind)
    with LoadedModel(model, state).denoiser() as denoiser:
        own = denoiser.predict(latents(), torch.tensor([0.2, 0.5, 0.9]), cond)
    model.save_lora(state, {"note": "x"}, tmp_path / "lora.safetensors")
    pipe = pipeline(folders, family)
    pipe.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    model.module = getattr(pipe, model.component)
    loaded = outputs(model, cond)
    assert (own - base).abs().max() > 1e-3 * base.abs().max()
    assert (loaded - own).abs().max() < 2e-6 * own.abs().max()
    if kind == "lora":
        assert "unexpected keys" not in caplog.text
        assert "missing keys" not in caplog.text


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
def test_files_act_with_scale_one(folders, kind):
    """The same tensors at alpha = rank, which is what a loader without alpha assumes."""
    model = load_diffusers(folders / "sd3")
    cond = model.encode_text(CAPTIONS)
    state = trained(model, kind, rank=4, alpha=3.0)
    tensors = model.lora_tensors(state)
    plain = {k.removeprefix("transformer."): v for k, v in tensors.items() if "dora_scale" not in k}
    folded = AdapterState(LoRAConfig(kind, 4, 4.0, targets=state.config.targets), plain)
    with attached(model.module, state):
        own = outputs(model, cond)
    with attached(model.module, folded):
        torch.testing.assert_close(outputs(model, cond), own, rtol=1e-5, atol=1e-6)
    assert not any(k.endswith(".alpha") for k in tensors)


def test_dora_scale_gives_comfyui_the_trained_weights(folders):
    """ComfyUI computes ``(W + BA) dora_scale / ||W||`` by row (weight_adapter/base.py, weight_decompose)."""
    model = load_diffusers(folders / "sd")
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    state = trained(model, "dora", targets=(name,))
    key = "lora_unet_" + name.replace(".", "_")
    tensors = model.lora_tensors(state)
    weight = model.module.get_submodule(name).weight
    up, down, scale = (
        tensors[f"{key}.{end}"] for end in ("lora_up.weight", "lora_down.weight", "dora_scale")
    )
    hosts = (weight + up @ down) * scale / weight.norm(dim=1, keepdim=True)
    x = torch.eye(weight.shape[1])
    with attached(model.module, state):
        own = model.module.get_submodule(name)(x).T
    torch.testing.assert_close(hosts, own, rtol=1e-5, atol=1e-6)


def test_unet_convolutions_load_too(folders, tmp_path):
    model = load_diffusers(folders / "sd")
    cond = model.encode_text(CAPTIONS)
    state = trained(model, targets=(r"conv[12]$", r"proj_(in|out)$", r"ff\.net", r"time_emb_proj$", "attn"))
    with attached(model.module, state):
        own = outputs(model, cond)
    model.save_lora(state, {}, tmp_path / "lora.safetensors")
    pipe = pipeline(folders, "sd")
    pipe.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    model.module = pipe.unet
    assert (outputs(model, cond) - own).abs().max() < 2e-6 * own.abs().max()


def test_a_file_that_is_there_stays_whole_when_writing_fails(folders, tmp_path, monkeypatch):
    model = load_diffusers(folders / "sd3")
    path = tmp_path / "lora.safetensors"
    model.save_lora(trained(model), {}, path)
    before = path.read_bytes()
    monkeypatch.setattr(
        "os.replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space"):
        model.save_lora(trained(model, rank=2), {}, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["lora.safetensors"]


def test_default_targets_are_the_attention_projections(folders, family):
    model = load_diffusers(folders / family)
    names = trained(model).tensors.keys()
    attention = [n for n, m in model.module.named_modules() if isinstance(m, nn.Linear) and ".attn" in n]
    assert {n.rsplit(".lora_", 1)[0] for n in names} == set(attention)


# --- the demo model -------------------------------------------------------------------------------

DEMO = Path(__file__).resolve().parents[3] / "demo"


@pytest.fixture(scope="module")
def demo():
    return load_diffusers(DEMO / "model")


def test_the_demo_model_loads(demo):
    assert (demo.prediction, demo.schedule.shift, demo.default_resolution) == ("flow", 1.0, 128)
    assert isinstance(demo.vae, AutoencoderTiny)
    assert demo.latent_shape(128, 128) == (16, 16, 16)


def test_the_demo_autoencoder_keeps_a_picture(demo):
    from rollout_trainer.training.data.folders import read_image_folder
    from rollout_trainer.training.data.images import fitted

    items = read_image_folder(DEMO / "data").items[:2]
    pixels = torch.stack([fitted(item, item.path.read_bytes(), 128, 128)[0] for item in items])
    error = (demo.decode_latents(demo.encode_images(pixels)) - pixels).square().mean()
    assert -10 * error.log10() > 22  # dB


def test_a_demo_lora_file_loads_in_diffusers(demo, tmp_path):
    state = trained(demo, rank=8, alpha=4.0)
    cond = demo.encode_text(["grinning face, blob style, white background"] * 3)
    x, sigma = (
        torch.randn(3, 16, 16, 16, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0.2, 0.5, 0.9]),
    )
    with LoadedModel(demo, state).denoiser() as denoiser:
        own = denoiser.predict(x, sigma, cond)
    demo.save_lora(state, {}, tmp_path / "lora.safetensors")
    pipe = StableDiffusion3Pipeline.from_pretrained(DEMO / "model", text_encoder_3=None, tokenizer_3=None)
    pipe.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    out = pipe.transformer.float()(
        x, timestep=sigma * 1000, encoder_hidden_states=cond["context"], pooled_projections=cond["pooled"]
    )
    assert (out.sample - own).abs().max() < 1e-5 * own.abs().max()
    assert all(k.startswith("transformer.") for k in load_file(tmp_path / "lora.safetensors"))


def test_a_preview_of_a_large_picture_takes_the_memory_of_a_small_one(folders):
    from rollout_trainer.training.plan.ledger import accounted

    model = load_diffusers(folders / "sd3")
    peaks = {}
    for side in (256, 1024):
        latents = torch.zeros(
            1, *(model.latent_channels, side // model.scale_factor, side // model.scale_factor)
        )
        with accounted(model.vae, "cpu") as ledger:
            before = ledger.live
            model.preview_latents(latents)
            peaks[side] = ledger.peak - before
    whole = 3 * 1024 * 1024 * 4
    assert (
        peaks[1024] < 1.5 * peaks[256] + 4 * whole
    )  # beside the picture itself and what it is put together from
    assert not model.vae.use_tiling


def test_small_previews_are_the_decoded_pictures(folders):
    model = load_diffusers(folders / "sd3")
    latents = torch.randn(2, *model.latent_shape(32, 32))
    assert torch.equal(model.preview_latents(latents), model.decode_latents(latents))


def test_a_training_keeps_from_cudnns_attention():
    denoiser = load_diffusers(DEMO / "model").denoiser()
    for training in (True, False):
        with denoiser.opened(training):
            assert torch.backends.cuda.cudnn_sdp_enabled() is not training
    assert torch.backends.cuda.cudnn_sdp_enabled()
