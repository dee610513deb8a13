"""A host's model as a `ModelSource`, on a stand-in host whose network is a linear layer per family of prediction."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from rollout_trainer.samplers import FlowSchedule, TableSchedule
from rollout_trainer.training.conditioning import joined
from rollout_trainer.training.data.latents import Latents, dataset_from_latents
from rollout_trainer.training.files import digest
from rollout_trainer.training.forms import add_noise, expand, from_velocity, true_velocity
from rollout_trainer.training.lora.adapter import Adapter, LoRAConfig, attached
from rollout_trainer.training.lora.reading import read_lora
from rollout_trainer.training.models.hosted import HostModel


class Network:
    """Its estimate of x0 is an affine function of x and the mean of the caption, row by row."""

    name = "Stand-in"
    device = torch.device("cpu")
    dtype = torch.float32
    latent_channels = 4
    frames = False
    scale_factor = 8
    patch_size = 2

    def __init__(self, prediction="flow", shift=3.0):
        self.prediction = prediction
        self.shift = shift
        self.table = torch.linspace(0.03, 14.6, 1000, dtype=torch.float64)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            attn = nn.ModuleDict({"qkv": nn.Linear(4, 4), "proj": nn.Linear(4, 4)})
            self.module = nn.ModuleDict({"attn": attn, "other": nn.Linear(4, 4)}).requires_grad_(False)
        self.asked = []

    def flow_sigma(self, u):
        return self.shift * u / (1 + (self.shift - 1) * u)

    def weights(self):
        return self.module.state_dict().items()

    def weight(self, module):
        return self.module.get_submodule(module).weight

    def encoder_weights(self):
        return []

    @contextmanager
    def opened(self, training=False):
        self.asked.append("training" if training else "reading")
        try:
            yield
        finally:
            self.asked.append("closed")

    def denoised(self, x, sigma, rows):
        self.asked.append([row["cross_attn"].shape[1] for row in rows])
        hidden = self.module["attn"]["proj"](self.module["attn"]["qkv"](x.movedim(1, -1))).movedim(-1, 1)
        means = torch.stack([row["cross_attn"].mean() for row in rows])
        return hidden + expand(means, x)

    def loss_weight(self, sigma):
        return None

    def encode_image(self, pixels):
        return pixels[:, ::8, ::8, :1].movedim(-1, 1).repeat(1, 4, 1, 1)

    def decode_latent(self, latent):
        return latent[:, :3].movedim(1, -1)

    def preview_latent(self, latent):
        return latent[:, :3].movedim(1, -1).clamp(0, 1)

    def encode_caption(self, caption):
        return {"cross_attn": torch.full((1, len(caption) + 1, 2), float(len(caption)))}


def inputs(source, n=3):
    g = torch.Generator().manual_seed(1)
    x0, noise = torch.randn(n, 4, 2, 2, generator=g), torch.randn(n, 4, 2, 2, generator=g)
    sigma = source.schedule.sigma(torch.linspace(0.9, 0.2, n, dtype=torch.float64)).float()
    return x0, noise, sigma, add_noise(source.prediction, x0, noise, sigma)


@pytest.mark.parametrize("prediction", ["flow", "epsilon", "v"])
def test_a_perfect_estimate_of_x0_is_the_true_prediction(prediction):
    network = Network(prediction)
    source = HostModel(network)
    x0, noise, sigma, x = inputs(source)
    network.denoised = lambda x, sigma, rows: x0
    output = source.denoiser().predict(x, sigma, source.encode_text(["a", "bb", "ccc"]))
    target = from_velocity(prediction, x, sigma, true_velocity(prediction, x0, noise))
    assert (output - target).abs().max() < 1e-4


@pytest.mark.parametrize("prediction", ["flow", "epsilon", "v"])
def test_the_hosts_estimate_of_x0_goes_straight(prediction):
    """To the last bit: nothing is converted there and back."""
    network = Network(prediction)
    source = HostModel(network)
    _, _, sigma, x = inputs(source)
    cond = source.encode_text(["a", "bb", "ccc"])
    given = network.denoised(
        x, sigma, [{"cross_attn": torch.full((1, n + 1, 2), float(n))} for n in (1, 2, 3)]
    )
    assert torch.equal(source.denoiser().denoised(x, sigma, cond), given)


@pytest.mark.parametrize("shift", [1.0, 3.0, 3.158])
def test_the_shift_of_a_flow_model_is_found(shift):
    schedule = HostModel(Network(shift=shift)).schedule
    assert isinstance(schedule, FlowSchedule)
    assert schedule.shift == pytest.approx(shift, abs=1e-12)


def test_other_noise_levels_of_a_flow_model_are_refused():
    network = Network()
    network.flow_sigma = lambda u: u**2
    with pytest.raises(ValueError, match="noise levels of a shift"):
        HostModel(network)


def test_the_table_of_others_is_the_hosts():
    schedule = HostModel(Network("epsilon")).schedule
    assert isinstance(schedule, TableSchedule)
    assert float(schedule.sigma(torch.ones(1, dtype=torch.float64))) == pytest.approx(14.6)


def test_each_row_gets_its_own_caption_at_its_own_length():
    network = Network()
    source = HostModel(network)
    _, _, sigma, x = inputs(source)
    cond = source.encode_text(["", "four", "xx"])
    together = source.denoiser().predict(x, sigma, cond)
    assert network.asked[-1] == [1, 5, 3]
    alone = source.denoiser().predict(x[1:2], sigma[1:2], source.encode_text(["four"]))
    assert torch.allclose(together[1:2], alone, atol=1e-6)


def test_at_sigma_0_the_prediction_is_finite():
    source = HostModel(Network())
    x = inputs(source)[3]
    assert source.denoiser().predict(x, torch.zeros(3), source.encode_text(["a"] * 3)).isfinite().all()


def test_the_network_is_opened_for_what_is_done_and_closed_after_an_error():
    network = Network()
    with pytest.raises(KeyError), HostModel(network).denoiser().opened(training=True):
        raise KeyError
    assert network.asked == ["training", "closed"]


def test_targets_are_the_attention_layers_that_there_are_else_all_in_blocks():
    network = Network()
    source = HostModel(network)
    assert source.default_lora_targets == (r"attn2?\.(qkv|proj)$",)
    other = Network()
    other.module = nn.ModuleDict({"blocks": nn.ModuleList([nn.ModuleDict({"mix": nn.Linear(4, 4)})])})
    assert HostModel(other).default_lora_targets == (r"\.\d+\.",)


def test_both_attentions_of_an_sd35_medium_block_are_targets():
    network = Network()
    network.module = nn.ModuleDict(
        {
            name: nn.ModuleDict({"qkv": nn.Linear(4, 12), "proj": nn.Linear(4, 4)})
            for name in ("attn", "attn2")
        }
    )
    config = LoRAConfig(rank=1, targets=HostModel(network).default_lora_targets)
    adapter = Adapter(network.module, config)
    assert {name.split(".")[0] for name in adapter.state().tensors} == {"attn", "attn2"}


def test_a_saved_lora_is_read_back_as_the_same_adapter(tmp_path):
    source = HostModel(Network())
    config = LoRAConfig(rank=2, alpha=4.0, targets=source.default_lora_targets)
    adapter = Adapter(source.network.module, config)
    with torch.no_grad():
        for p in adapter.parameters():
            p.normal_(generator=torch.Generator().manual_seed(0))
    state = adapter.state()
    adapter.detach()
    source.save_lora(state, {}, tmp_path / "a.safetensors")
    names = source.lora_tensors(state)
    assert "diffusion_model.attn.qkv.lora_up.weight" in names
    found = read_lora(tmp_path / "a.safetensors", source.network.module)
    _, _, sigma, x = inputs(source)
    outputs = []
    for one in (state, found):
        with attached(source.network.module, one):
            outputs.append(source.denoiser().predict(x, sigma, source.encode_text(["a"] * 3)))
    assert torch.allclose(*outputs, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "channels", "frames", "side"),
    [
        ("SDXL", 4, False, 1024),
        ("BaseModel", 4, False, 512),
        ("QwenImage", 16, True, 1024),
        ("WAN21", 16, True, 512),
        ("Flux", 16, False, 1024),
    ],
)
def test_the_default_side_is_the_familys_own(name, channels, frames, side):
    network = Network()
    network.name, network.latent_channels, network.frames = name, channels, frames
    assert HostModel(network).default_resolution == side


def test_latent_shapes():
    source = HostModel(Network())
    assert source.latent_shape(64, 128) == (4, 8, 16)
    with pytest.raises(ValueError, match="width must be a multiple of 16"):
        source.latent_shape(64, 72)
    source.network.frames = True
    assert source.latent_shape(64, 128) == (4, 1, 8, 16)


def test_pictures_go_through_one_by_one():
    source = HostModel(Network())
    pixels = torch.rand(2, 3, 16, 16)
    assert source.encode_images(pixels).shape == (2, 4, 2, 2)
    assert source.decode_latents(torch.rand(2, 4, 2, 2)).shape == (2, 3, 2, 2)
    assert source.preview_latents(torch.rand(2, 4, 2, 2)).shape == (2, 3, 2, 2)


def test_a_fingerprint_sees_weights_and_noise_levels():
    one, other = HostModel(Network()), HostModel(Network())
    assert one.fingerprint == other.fingerprint
    changed = Network()
    changed.module["other"].weight[0, 0] += 1e-3
    assert HostModel(changed).fingerprint != one.fingerprint
    assert digest([("a", torch.zeros(2))]) != digest([("a", torch.zeros(2, dtype=torch.float16))])
    for dtype in (torch.float8_e4m3fn, torch.bfloat16, torch.long):
        assert digest([("a", torch.ones(2).to(dtype))]) != digest([("a", torch.zeros(2).to(dtype))])


# -- data ------------------------------------------------------------------------------------------


def caption(length):
    return {"cross_attn": torch.full((1, length, 2), float(length))}


def test_latents_of_several_sizes_are_buckets_with_their_own_captions():
    sizes = [Latents(torch.zeros(2, 4, 2, 2), None), Latents(torch.ones(1, 4, 3, 2), None)]
    data = dataset_from_latents(sizes, [caption(n) for n in (1, 2, 3)], caption(4), None, 2, "m")
    assert [len(bucket) for bucket in data.buckets] == [2, 1]
    assert data.samples_per_epoch == 6
    names = {name: value.shape[1:] for name, value in data.empty_cond.items()}
    assert all({k: v.shape[1:] for k, v in bucket.cond.items()} == names for bucket in data.buckets)
    assert data.batch(torch.tensor([2])).x0.shape == (1, 4, 3, 2)


def test_masks_come_at_the_latents_size_also_for_frames():
    mask = torch.zeros(1, 8, 8)
    mask[..., 4:] = 1
    data = dataset_from_latents([Latents(torch.zeros(2, 4, 1, 2, 2), mask)], [caption(1)], None, None, 1, "m")
    (bucket,) = data.buckets
    assert bucket.masks.shape == (2, 1, 1, 2, 2)
    assert torch.equal(bucket.masks[0, 0, 0], torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    assert data.empty_cond == {}


@pytest.mark.parametrize(
    ("captions", "masks", "said"),
    [
        (2, None, "one for each of 3 latents, got 2 captions"),
        (0, None, "got 0 captions"),
        (1, 2, "one for each of 3 latents, got 2 masks"),
    ],
)
def test_counts_that_do_not_match_are_one_line(captions, masks, said):
    latents = [Latents(torch.zeros(3, 4, 2, 2), None)]
    given = None if masks is None else [torch.ones(1, 2, 2)] * masks
    with pytest.raises(ValueError, match=said):
        dataset_from_latents(latents, [caption(1)] * captions, None, given, 1, "m")


def test_data_of_other_content_has_another_fingerprint():
    def of(value, length=1):
        return dataset_from_latents(
            [Latents(torch.full((1, 4, 2, 2), value), None)], [caption(length)], None, None, 1, "m"
        ).fingerprint

    assert of(0.0) == of(0.0)
    assert len({of(0.0), of(1.0), of(0.0, 2)}) == 3
    assert joined([caption(1)]).keys() == {"cross_attn"}
