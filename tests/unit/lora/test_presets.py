"""Presets of layers, on networks whose names are those of families as ComfyUI has them."""

import pytest
from torch import nn

from rollout_trainer.training.lora.adapter import LoRAConfig, target_modules
from rollout_trainer.training.lora.presets import in_block, preset_targets

# Family -> (layers of attention and MLP in the blocks, the other linear layers), one of each kind.
FAMILIES = {
    "flux": (
        "double_blocks.0.img_attn.qkv double_blocks.0.txt_attn.proj double_blocks.0.img_mlp.2 single_blocks.1.linear1 "
        "single_blocks.1.linear2",
        "img_in txt_in time_in.in_layer guidance_in.out_layer double_blocks.0.img_mod.lin "
        "single_blocks.1.modulation.lin "
        "double_stream_modulation_img.lin final_layer.linear final_layer.adaLN_modulation.1",
    ),
    "chroma": (
        "double_blocks.0.img_mlp.0 single_blocks.0.linear2",
        "distilled_guidance_layer.layers.0.in_layer nerf_blocks.0.param_generator nerf_image_embedder.embedder.0",
    ),
    "sd3": (
        "joint_blocks.0.x_block.attn.qkv joint_blocks.0.context_block.mlp.fc1 joint_blocks.0.x_block.attn2.proj",
        "context_embedder joint_blocks.0.x_block.adaLN_modulation.1 t_embedder.mlp.0 y_embedder.mlp.2",
    ),
    "sdxl": (
        "input_blocks.4.1.transformer_blocks.0.attn1.to_q input_blocks.4.1.transformer_blocks.0.ff.net.0.proj "
        "middle_block.1.transformer_blocks.0.attn2.to_out.0 input_blocks.4.1.proj_in",
        "input_blocks.1.0.emb_layers.1 time_embed.0 label_emb.0.0",
    ),
    "qwen_image": (
        "transformer_blocks.3.attn.add_k_proj transformer_blocks.3.attn.to_out.0 "
        "transformer_blocks.3.img_mlp.net.0.proj",
        "transformer_blocks.3.img_mod.1 norm_out.linear time_text_embed.timestep_embedder.linear_1 proj_out",
    ),
    "z_image": (
        "layers.0.attention.qkv layers.0.feed_forward.w3",
        "noise_refiner.0.attention.qkv context_refiner.1.feed_forward.w1 layers.0.adaLN_modulation.0 cap_embedder.1",
    ),
    "auraflow": (
        "double_layers.0.attn.w1q single_layers.0.mlp.c_proj double_layers.0.mlpX.c_fc1",
        "double_layers.0.modC.1 single_layers.0.modCX.1 modF.1 cond_seq_linear",
    ),
    "hidream": (
        "double_stream_blocks.0.block.attn1.to_k_t single_stream_blocks.0.block.ff_i.experts.3.w2",
        "caption_projection.0.linear single_stream_blocks.0.block.adaLN_modulation.1 "
        "p_embedder.pooled_embedder.linear_1",
    ),
    "hunyuan_video": (
        "double_blocks.0.txt_mlp.0 single_blocks.0.linear1",
        "txt_in.individual_token_refiner.blocks.0.mlp.0 vision_in.proj.1 double_blocks.0.txt_mod.lin",
    ),
    "wan": (
        "blocks.0.self_attn.q blocks.0.cross_attn.k_img blocks.0.ffn.2 vace_blocks.0.ffn.0",
        "text_embedding.0 time_projection.1 head.head vace_blocks.0.before_proj",
    ),
    "ltx": (
        "transformer_blocks.0.attn1.to_k transformer_blocks.0.ff.net.2",
        "adaln_single.linear caption_projection.linear_1 transformer_blocks.0.audio_attn1.to_q "
        "transformer_blocks.0.video_to_audio_attn.to_q video_embeddings_connector.transformer_1d_blocks.0.attn1.to_q",
    ),
    "anima": (
        "blocks.0.self_attn.q_proj blocks.0.mlp.layer1",
        "llm_adapter.blocks.0.self_attn.q_proj blocks.0.adaln_modulation_mlp.1 t_embedder.1.linear_1",
    ),
    "krea2": (
        "blocks.0.attn.wq blocks.0.mlp.gate",
        "txtfusion.layerwise_blocks.0.attn.wq tmlp.0 tproj.1 last.linear",
    ),
    "cosmos": (
        "blocks.block0.blocks.0.block.attn.to_q.0",
        "blocks.block0.blocks.0.adaLN_modulation.1 x_embedder.proj.1",
    ),
    "mochi": ("blocks.0.attn.qkv_x blocks.0.mlp_y.w1", "blocks.0.mod_x t5_y_embedder.to_kv"),
    "cogvideox": ("blocks.0.q blocks.0.ff_proj", "blocks.0.norm1.linear time_embedding_linear_1"),
    "diffusers": (
        "transformer_blocks.0.ff_context.net.2 single_transformer_blocks.0.proj_mlp",
        "transformer_blocks.0.norm1.linear proj_out",
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_and_mlp_of_the_blocks_and_nothing_else(family):
    chosen, others = (names.split() for names in FAMILIES[family])
    assert [name for name in chosen if not in_block(name)] == []
    assert [name for name in others if in_block(name)] == []


def network(names):
    """A module with linear layers of these names."""
    root = nn.Module()
    for name in names:
        *path, last = name.split(".")
        at = root
        for part in path:
            if part not in at._modules:
                at.add_module(part, nn.Module())
            at = at._modules[part]
        at.add_module(last, nn.Linear(2, 2))
    return root


def test_the_expressions_of_a_preset_find_its_layers_and_no_others():
    chosen, others = (names.split() for names in FAMILIES["flux"])
    module = network([*chosen, "double_blocks.11.img_attn.qkv", *others])
    targets = preset_targets("attention+mlp", module, ())
    assert set(target_modules(module, targets)) == {*chosen, "double_blocks.11.img_attn.qkv"}
    assert len(targets) == len(chosen)  # one for a kind, however many blocks there are
    everything = preset_targets("all", module, ())
    assert set(target_modules(module, everything)) == {*chosen, "double_blocks.11.img_attn.qkv", *others}


def test_attention_is_what_it_was_and_custom_has_no_layers():
    module = network(["blocks.0.attn.qkv", "blocks.0.mlp.0"])
    assert preset_targets("attention", module, (r"attn\.qkv$",)) == (r"attn\.qkv$",)
    with pytest.raises(ValueError, match="targets must name layers where the preset is custom"):
        preset_targets("custom", module, ())


def test_of_a_network_without_blocks_the_familys_own_layers_are_taken():
    module = network(["first", "second"])
    assert preset_targets("attention+mlp", module, ("first",)) == ("first",)


def test_a_preset_is_one_of_four():
    assert LoRAConfig().preset == "attention+mlp"
    with pytest.raises(ValueError, match="preset"):
        LoRAConfig(preset="most")
