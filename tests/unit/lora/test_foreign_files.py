"""Files of other tools act as elsewhere, to the weight; what cannot be trained on is named truly; settings keep it."""

import logging

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rollout_trainer.training.lora.adapter import Adapter, LoRAConfig, attached
from rollout_trainer.training.lora.keys import Place
from rollout_trainer.training.lora.reading import read_lora
from rollout_trainer.training.models.families import load_diffusers

FAMILIES = ["sd3", "flux", "sd", "sdxl"]


@pytest.fixture
def gen():
    return torch.Generator().manual_seed(5)


@pytest.fixture(scope="module", params=FAMILIES)
def source(request, folders):
    return load_diffusers(folders / request.param)


def layers(source, kind=nn.Linear, part="attn", n=3):
    return [(k, m) for k, m in source.module.named_modules() if isinstance(m, kind) and part in k][:n]


def factors(weight, rank, gen):
    """``down`` [r, in, ...] and ``up`` [out, r, 1, ...]."""
    out, inner, *kernel = weight.shape
    down = torch.randn(rank, inner, *kernel, generator=gen) * 0.2
    return down, torch.randn(out, rank, *[1] * len(kernel), generator=gen) * 0.2


def effective(module, name, state):
    """The weight that a layer acts with under an adapter, told by its output."""
    layer = module.get_submodule(name)
    if isinstance(layer, nn.Conv2d):
        with attached(module, state):
            wrapped = module.get_submodule(name)
            x = torch.eye(layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1])
            x = x.reshape(-1, layer.in_channels, *layer.kernel_size)
            pad, layer.padding = layer.padding, (0, 0)
            convs = [m for m in wrapped.modules() if isinstance(m, nn.Conv2d)]
            pads = [m.padding for m in convs]
            for m in convs:
                m.padding = (0, 0)
            out = wrapped(x) - (0 if layer.bias is None else layer.bias[:, None, None])
            for m, p in zip(convs, pads, strict=True):
                m.padding = p
            layer.padding = pad
        return out[:, :, 0, 0].t().reshape(layer.weight.shape)
    with attached(module, state):
        out = module.get_submodule(name)(torch.eye(layer.in_features))
    return (out - (0 if layer.bias is None else layer.bias)).t()


def flat(name):
    return name.replace(".", "_")


FORMS = {
    "diffusers": lambda c, n: (f"{c}.{n}", "lora_B.weight", "lora_A.weight"),
    "old diffusers": lambda c, n: (f"{c}.{n}", "lora.up.weight", "lora.down.weight"),
    "peft": lambda c, n: (f"base_model.model.{n}", "lora_B.weight", "lora_A.weight"),
    "peft default": lambda c, n: (f"base_model.model.{n}", "lora_B.default.weight", "lora_A.default.weight"),
    "DiffSynth": lambda c, n: (n, "lora_B.default.weight", "lora_A.default.weight"),
    "bare": lambda c, n: (n, "lora_B.weight", "lora_A.weight"),
    "ai-toolkit": lambda c, n: (f"diffusion_model.{n}", "lora_B.weight", "lora_A.weight"),
    "model.diffusion_model": lambda c, n: (f"model.diffusion_model.{n}", "lora_up.weight", "lora_down.weight"),
    "OneTrainer": lambda c, n: (f"{c}.{n}", "lora_up.weight", "lora_down.weight"),
    "kohya": lambda c, n: (f"lora_unet_{flat(n)}", "lora_up.weight", "lora_down.weight"),
    "lora_transformer": lambda c, n: (f"lora_transformer_{flat(n)}", "lora_up.weight", "lora_down.weight"),
    "LyCORIS": lambda c, n: (f"lycoris_{flat(n)}", "lora_up.weight", "lora_down.weight"),
    "processors": lambda c, n: (
        n.replace(".to_", ".processor.to_").removesuffix(".0") + "_lora", "up.weight", "down.weight"
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("alpha", [None, 2.0])
def test_every_way_of_naming_is_understood(form, alpha, source, gen, tmp_path):
    tensors, expected = {}, {}
    for name, layer in layers(source):
        down, up = factors(layer.weight, 4, gen)
        stem, up_end, down_end = FORMS[form](source.component, name)
        tensors |= {f"{stem}.{up_end}": up, f"{stem}.{down_end}": down}
        if alpha is not None:
            tensors[f"{stem.removesuffix('_lora')}.alpha"] = torch.tensor(alpha)
        expected[name] = layer.weight + (1.0 if alpha is None else alpha / 4) * (up @ down)
    save_file(tensors, tmp_path / "a.safetensors")
    state = source.read_lora(tmp_path / "a.safetensors")
    for name, weight in expected.items():
        torch.testing.assert_close(effective(source.module, name, state), weight, rtol=1e-4, atol=1e-5)


def read(source_or_module, tensors, tmp_path, **known):
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, tmp_path / "a.safetensors")
    module = getattr(source_or_module, "module", source_or_module)
    return read_lora(tmp_path / "a.safetensors", module, **known)


def plain(source, gen, rank=4, n=3):
    tensors = {}
    for name, layer in layers(source, n=n):
        down, up = factors(layer.weight, rank, gen)
        tensors |= {f"transformer.{name}.lora_A.weight": down, f"transformer.{name}.lora_B.weight": up}
    return tensors


def test_ranks_may_differ(source, gen, tmp_path):
    names = [name for name, _ in layers(source)]
    tensors, expected = {}, {}
    for rank, (name, layer) in zip((2, 5, 3), layers(source), strict=True):
        down, up = factors(layer.weight, rank, gen)
        tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
        expected[name] = layer.weight + up @ down
    state = read(source, tensors, tmp_path)
    assert state.config.rank == 5
    assert state.config.targets == tuple(f"^{name}$".replace(".", r"\.") for name in sorted(names))
    for name, weight in expected.items():
        torch.testing.assert_close(effective(source.module, name, state), weight, rtol=1e-4, atol=1e-5)
    beyond = state.tensors[f"{names[0]}.lora_A.weight"][2:]
    assert beyond.abs().min() > 0  # rows of 0 on both sides could never learn


TEXT = {
    "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(4, 4),
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha": torch.tensor(2.0),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(4, 4),
    "text_encoder_2.encoder.block.0.layer.0.lora_B.weight": torch.ones(4, 4),
    "text_encoders.clip_l.transformer.q_proj.lora_up.weight": torch.ones(4, 4),
    "bundle_emb.ohwx.clip_l": torch.ones(2, 4),
}


def test_the_text_encoders_part_is_left_out_with_a_line(source, gen, tmp_path, caplog):
    tensors = plain(source, gen)
    without = read(source, tensors, tmp_path)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        state = read(source, tensors | TEXT, tmp_path)
    assert "a.safetensors: left out 6 tensors of text encoders, which are not trained here: " in caplog.text
    assert all(torch.equal(state.tensors[k], without.tensors[k]) for k in without.tensors)
    with pytest.raises(
        ValueError, match="must hold an adapter of the network, but holds a text encoder alone"
    ):
        read(source, TEXT, tmp_path)


def test_changes_of_biases_are_left_out_with_a_line(source, gen, tmp_path, caplog):
    name, layer = layers(source)[0]
    extra = {f"transformer.{name}.diff_b": torch.ones(layer.out_features)}
    with caplog.at_level(logging.WARNING):
        state = read(source, plain(source, gen) | extra, tmp_path)
    assert (
        "left out 1 tensors that change biases, norms or whole weights, which an adapter does not hold"
        in caplog.text
    )
    assert not any("diff" in key for key in state.tensors)


def test_layers_that_the_model_lacks_are_left_out_with_a_line(source, gen, tmp_path, caplog):
    extra = {"transformer.nowhere.lora_A.weight": torch.ones(4, 4)}
    with caplog.at_level(logging.WARNING):
        read(source, plain(source, gen) | extra, tmp_path)
    assert (
        "left out 1 tensors of layers that this model does not have: transformer.nowhere.lora_A.weight"
        in caplog.text
    )


# --- DoRA -------------------------------------------------------------------------------------------


def scales(source, gen, axis=0):
    return {
        name: layer.weight.norm(dim=1 - axis, keepdim=True) * (1 + torch.rand(1, generator=gen))
        for name, layer in layers(source)
    }


def test_the_scales_of_others_doras_are_read_exactly(source, gen, tmp_path):
    """As the stock loader applies them: ``(W + BA) scale / ||W||``."""
    tensors, expected = {}, {}
    own = scales(source, gen)
    for name, layer in layers(source):
        down, up = factors(layer.weight, 4, gen)
        stem = f"lora_unet_{flat(name)}"
        tensors |= {
            f"{stem}.lora_up.weight": up,
            f"{stem}.lora_down.weight": down,
            f"{stem}.dora_scale": own[name],
        }
        tensors[f"{stem}.alpha"] = torch.tensor(2.0)
        ratio = own[name] / layer.weight.norm(dim=1, keepdim=True)
        expected[name] = (layer.weight + up @ down * 0.5) * ratio
    state = read(source, tensors, tmp_path)
    assert state.config.kind == "dora"
    for name, weight in expected.items():
        torch.testing.assert_close(effective(source.module, name, state), weight, rtol=1e-4, atol=1e-5)


def test_scales_of_columns_are_refused_truly(source, gen, tmp_path):
    tensors = plain(source, gen)
    own = scales(source, gen, axis=1)
    tensors |= {f"transformer.{name}.dora_scale": scale for name, scale in own.items()}
    with pytest.raises(ValueError, match=r"must scale the rows of its layers, but .* has scales of columns"):
        read(source, tensors, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("names", ["own", "host"])
@pytest.mark.parametrize("targets", ["preset", "all"])
def test_our_own_dora_is_continued(family, names, targets, folders, tmp_path):
    """Files for hosts, and of UNets, hold ``dora_scale`` alone."""
    import json

    from rollout_trainer.training.checks import to_plain
    from rollout_trainer.training.lora.file import comfy_names

    source = load_diffusers(folders / family)
    config = LoRAConfig("dora", 3, 5.0, 0.0, source.default_lora_targets if targets == "preset" else (".*",))
    state = moved(source.module, config)
    tensors = (
        source.lora_tensors(state)
        if names == "own"
        else comfy_names(source.portable(state), "diffusion_model")
    )
    if names == "host" or family in ("sd", "sdxl"):
        assert not any("magnitude" in name for name in tensors)
    header = {"format": "rollout-trainer-1", "config": json.dumps({"lora": to_plain(config)})}
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "a.safetensors", header)
    again = source.read_lora(tmp_path / "a.safetensors")
    assert again.config == config
    assert again.tensors.keys() == state.tensors.keys()
    for key, value in state.tensors.items():
        torch.testing.assert_close(again.tensors[key], value, rtol=2e-5, atol=1e-6)
        assert again.tensors[key].shape == value.shape


def moved(module, config, seed=3):
    """An adapter with random weights on it, taken off again."""
    adapter = Adapter(module, config, 1)
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in adapter.parameters():
            p += torch.randn(p.shape, generator=gen) * 0.05
    state = adapter.state()
    adapter.detach()
    return state


# --- other forms of a network -----------------------------------------------------------------------


def test_fused_layers_of_a_file_are_split(folders, gen, tmp_path):
    """Original names of SD3 and Flux on diffusers' networks."""
    for family, fused, parts in (
        ("sd3", "joint_blocks.0.x_block.attn.qkv", ("to_q", "to_k", "to_v")),
        ("sd3", "joint_blocks.0.context_block.attn.qkv", ("add_q_proj", "add_k_proj", "add_v_proj")),
        ("flux", "double_blocks.0.img_attn.qkv", ("to_q", "to_k", "to_v")),
    ):
        module = load_diffusers(folders / family).module
        names = [f"transformer_blocks.0.attn.{part}" for part in parts]
        weights = [module.get_submodule(name).weight for name in names]
        down, up = factors(torch.cat(weights), 4, gen)
        for stem in (f"diffusion_model.{fused}", f"lora_unet_{flat(fused)}"):
            state = read(module, {f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down}, tmp_path)
            for name, weight, rows in zip(names, weights, (up @ down).chunk(3), strict=True):
                torch.testing.assert_close(
                    effective(module, name, state), weight + rows, rtol=1e-4, atol=1e-5
                )


def test_single_blocks_of_flux_are_split(folders, gen, tmp_path):
    module = load_diffusers(folders / "flux").module
    names = [
        f"single_transformer_blocks.0.{part}" for part in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    ]
    weights = [module.get_submodule(name).weight for name in names]
    down, up = factors(torch.cat(weights), 4, gen)
    stem = "lora_unet_single_blocks_0_linear1"
    state = read(module, {f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down}, tmp_path)
    for name, weight, rows in zip(names, weights, (up @ down).split([len(w) for w in weights]), strict=True):
        torch.testing.assert_close(effective(module, name, state), weight + rows, rtol=1e-4, atol=1e-5)


class Fused(nn.Module):
    """As hosts have attention: one layer for q, k and v."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(6, 12, bias=False)
        self.proj = nn.Linear(6, 6)


KNOWN = {f"t.to_{part}": (Place("qkv", (4 * i, 4)),) for i, part in enumerate("qkv")} | {
    "t.proj": (Place("proj", None, None, True),)
}


@pytest.mark.parametrize("kind", ["lora", "dora", "loha"])
@pytest.mark.parametrize("parts", ["qkv", "qv"])
def test_split_layers_of_a_file_are_joined(kind, parts, gen, tmp_path):
    module = Fused().requires_grad_(False)
    weight, proj = module.qkv.weight, module.proj.weight
    expected, tensors = weight.clone(), {}
    for part in parts:
        rows = slice(4 * "qkv".index(part), 4 * "qkv".index(part) + 4)
        (down, up), (down2, up2) = factors(weight[rows], 2, gen), factors(weight[rows], 2, gen)
        if kind == "loha":
            names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
            tensors |= dict(zip((f"t.to_{part}.{n}" for n in names), (up, down, up2, down2), strict=True))
            expected[rows] += (up @ down) * (up2 @ down2)
            continue
        tensors |= {f"t.to_{part}.lora_up.weight": up, f"t.to_{part}.lora_down.weight": down}
        expected[rows] += up @ down
        if kind == "dora":
            tensors[f"t.to_{part}.dora_scale"] = torch.rand(4, 1, generator=gen) + 1
            expected[rows] *= tensors[f"t.to_{part}.dora_scale"] / weight[rows].norm(dim=1, keepdim=True)
    if kind == "lora":
        down, up = factors(proj, 2, gen)
        tensors |= {"t.proj.lora_up.weight": up, "t.proj.lora_down.weight": down}
    state = read(module, tensors, tmp_path, known=KNOWN)
    assert state.config.kind == kind
    torch.testing.assert_close(effective(module, "qkv", state), expected, rtol=1e-4, atol=1e-5)
    if kind == "lora":  # scale and shift lie the other way round
        change = torch.cat((up @ down).chunk(2)[::-1])
        torch.testing.assert_close(effective(module, "proj", state), proj + change, rtol=1e-4, atol=1e-5)


def test_all_layers_of_a_unet_have_their_original_names(folders):
    """The names of the original SD1.x network, block by block, as of a network with two layers per block."""
    from rollout_trainer.training.lora.keys import module_keys

    source = load_diffusers(folders / "sd")
    keys = module_keys(source.module)
    by_module = {}
    for key, places in keys.items():
        if key.startswith(("input_blocks", "middle_block", "output_blocks")):
            by_module[places[0].module] = key
    expected = {
        "down_blocks.0.resnets.0.conv1": "input_blocks.1.0.in_layers.2",
        "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
        "down_blocks.1.attentions.0.proj_in": "input_blocks.3.1.proj_in",
        "mid_block.attentions.0.proj_in": "middle_block.1.proj_in",
        "mid_block.resnets.1.time_emb_proj": "middle_block.2.emb_layers.1",
        "up_blocks.0.resnets.1.conv_shortcut": "output_blocks.1.0.skip_connection",
        "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
        "up_blocks.1.resnets.0.conv2": "output_blocks.2.0.out_layers.3",
    }
    assert {name: by_module.get(name) for name in expected} == expected


# --- other kinds ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd3", "sd"])
def test_lohas_of_lycoris_are_read(family, folders, gen, tmp_path):
    source = load_diffusers(folders / family)
    tensors, expected = {}, {}
    for rank, (name, layer) in zip((4, 2, 4), layers(source), strict=True):
        (b1, a1), (b2, a2) = factors(layer.weight, rank, gen), factors(layer.weight, rank, gen)
        stem = f"lycoris_{flat(name)}"
        tensors |= {
            f"{stem}.hada_w1_a": a1,
            f"{stem}.hada_w1_b": b1,
            f"{stem}.hada_w2_a": a2,
            f"{stem}.hada_w2_b": b2,
        }
        tensors[f"{stem}.alpha"] = torch.tensor([2.0])
        expected[name] = layer.weight + (a1 @ b1) * (a2 @ b2) * (2 / rank)
    state = read(source, tensors, tmp_path)
    assert (state.config.kind, state.config.rank) == ("loha", 4)
    for name, weight in expected.items():
        torch.testing.assert_close(effective(source.module, name, state), weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factor", [2, 4, -1])
@pytest.mark.parametrize("second", ["whole", "factors", "mixed"])
@pytest.mark.parametrize("first", ["whole", "factors"])
def test_lokrs_of_lycoris_are_read(factor, second, first, folders, gen, tmp_path):
    from peft.tuners.lokr.layer import factorization

    source = load_diffusers(folders / "sd3")
    tensors, expected = {}, {}
    for i, (name, layer) in enumerate(layers(source)):
        (a, b), (c, d) = factorization(layer.out_features, factor), factorization(layer.in_features, factor)
        stem = f"lycoris_{flat(name)}"
        w1a, w1b = torch.randn(a, 2, generator=gen), torch.randn(2, c, generator=gen)
        w2a, w2b = torch.randn(b, 1, generator=gen), torch.randn(1, d, generator=gen)
        own = {"lokr_w1": w1a @ w1b} if first == "whole" else {"lokr_w1_a": w1a, "lokr_w1_b": w1b}
        whole = second == "whole" or (second == "mixed" and i)
        own |= {"lokr_w2": w2a @ w2b} if whole else {"lokr_w2_a": w2a, "lokr_w2_b": w2b}
        scale = 1.0 if first == "whole" and whole else 3.0 / (2 if whole else 1)
        tensors |= {f"{stem}.{k}": v for k, v in own.items()} | {f"{stem}.alpha": torch.tensor(3.0)}
        expected[name] = layer.weight + torch.kron(w1a @ w1b, w2a @ w2b) * scale
    state = read(source, tensors, tmp_path)
    assert state.config.kind == "lokr"
    for name, weight in expected.items():
        torch.testing.assert_close(effective(source.module, name, state), weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mid", [False, True])
def test_convolutions_are_read(mid, folders, gen, tmp_path):
    source = load_diffusers(folders / "sd")
    tensors, expected = {}, {}
    for name, layer in layers(source, nn.Conv2d, "resnets", 2):
        down, up = factors(layer.weight, 4, gen)
        stem = f"lora_unet_{flat(name)}"
        tensors |= {f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(2.0)}
        if mid:
            core = torch.randn(4, 4, *layer.kernel_size, generator=gen) * 0.2
            thin = torch.randn(4, layer.in_channels, 1, 1, generator=gen)
            tensors |= {f"{stem}.lora_down.weight": thin, f"{stem}.lora_mid.weight": core}
            down = torch.einsum("pqkl,qi->pikl", core, thin[..., 0, 0])
        else:
            tensors[f"{stem}.lora_down.weight"] = down
        change = (up.flatten(1) @ down.flatten(1)).reshape(layer.weight.shape)
        expected[name] = layer.weight + 0.5 * change
    state = read(source, tensors, tmp_path)
    for name, weight in expected.items():
        torch.testing.assert_close(effective(source.module, name, state), weight, rtol=1e-4, atol=1e-5)


NAME = "transformer_blocks.0.attn.to_q"
WRONG = {
    "is OFT": {f"transformer.{NAME}.oft_blocks": torch.ones(2, 4, 4)},
    "is GLoRA": {f"transformer.{NAME}.a1.weight": torch.ones(2, 4)},
    "has a Tucker decomposition": {
        **{f"{NAME}.hada_w{i}_{j}": torch.ones(4, 4) for i in (1, 2) for j in "ab"},
        f"{NAME}.hada_t1": torch.ones(4, 4, 3, 3),
    },
    "has no down weight": {f"{NAME}.lora_B.weight": torch.ones(16, 4)},
    "whose weight is": {f"{NAME}.lora_B.weight": torch.ones(4, 16), f"{NAME}.lora_A.weight": torch.ones(16, 4)},
    "has NaN or inf": {
        f"{NAME}.lora_B.weight": torch.full((16, 4), float("nan")), f"{NAME}.lora_A.weight": torch.ones(4, 16)
    },
    "has lokr and lora": {
        f"{NAME}.lokr_w1": torch.ones(4, 4), f"{NAME.replace('to_q', 'to_k')}.lora_A.weight": torch.ones(4, 16)
    },
    "it cannot be trained on": {f"{NAME}.lokr_w1": torch.ones(3, 5), f"{NAME}.lokr_w2": torch.ones(4, 4)},
    "holds nothing of an adapter": {},
}  # fmt: skip


@pytest.mark.parametrize("says", WRONG)
def test_what_cannot_be_trained_on_is_named_truly(says, folders, tmp_path):
    source = load_diffusers(folders / "sd3")
    with pytest.raises(ValueError, match=says) as caught:
        read(source, WRONG[says], tmp_path)
    assert "\n" not in str(caught.value)


# --- settings over a loaded LoRA --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
@pytest.mark.parametrize(("rank", "alpha"), [(4, 16.0), (4, 1.0), (6, 3.0)])
@pytest.mark.parametrize("more", [False, True], ids=["same layers", "more layers"])
def test_settings_keep_the_effect_of_a_loaded_lora(kind, rank, alpha, more, folders):
    module = load_diffusers(folders / "sd3").module
    loaded = moved(module, LoRAConfig(kind, 4, 2.0, 0.0, ("attn.to_[qk]$",)))
    targets = ("attn.to_[qkv]$",) if more else loaded.config.targets
    adapter = Adapter(module, LoRAConfig(kind, rank, alpha, 0.0, targets), 7)
    try:
        adapter.begin_with(loaded)
        own = adapter.state()
    finally:
        adapter.detach()
    for name, layer in layers(type("S", (), {"module": module}), n=3):
        expected = layer.weight if name.endswith("to_v") else effective(module, name, loaded)
        torch.testing.assert_close(effective(module, name, own), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            LoRAConfig("lora", 2, 2.0, 0.0, ("attn.to_[qk]$",)),
            "rank must be at least that of the loaded LoRA",
        ),
        (
            LoRAConfig("dora", 4, 2.0, 0.0, ("attn.to_[qk]$",)),
            "kind must be lora to go on from the loaded LoRA, got dora",
        ),
        (
            LoRAConfig("lora", 4, 2.0, 0.0, ("attn.to_q$",)),
            "targets must include all layers of the loaded LoRA",
        ),
        (LoRAConfig("lora", 4, 0.0, 0.0, ("attn.to_[qk]$",)), "alpha must be above 0"),
    ],
)
def test_settings_that_cannot_keep_it_are_refused(config, says, folders):
    module = load_diffusers(folders / "sd3").module
    loaded = moved(module, LoRAConfig("lora", 4, 2.0, 0.0, ("attn.to_[qk]$",)))
    adapter = Adapter(module, config)
    try:
        with pytest.raises(ValueError, match=says):
            adapter.begin_with(loaded)
    finally:
        adapter.detach()
