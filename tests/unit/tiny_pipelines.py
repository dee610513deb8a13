"""Tiny random pipeline folders of every family that the pack reads."""

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

CAPTIONS = ["a red cat", "dog", ""]
WORDS = ["<pad>", "<bos>", "<eos>", "a", "red", "cat", "dog"]
LENGTH = 8


def seeded(build, *args, **kwargs):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(*args, **kwargs)


def tokenizer():
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<eos>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        model_max_length=LENGTH,
    )


def clip(width=16, projection=16, kind=CLIPTextModelWithProjection):
    config = CLIPTextConfig(
        vocab_size=len(WORDS), hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=LENGTH, projection_dim=projection, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return seeded(kind, config)


def t5(width=32):
    return seeded(
        T5EncoderModel,
        T5Config(vocab_size=len(WORDS), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2),
    )


def kl(channels):
    return seeded(
        AutoencoderKL, block_out_channels=(8, 8), latent_channels=channels, norm_num_groups=4, sample_size=32,
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, scaling_factor=0.5,
        shift_factor=0.25,
    )  # fmt: skip


def unet(**options):
    return seeded(
        UNet2DConditionModel, sample_size=16, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=4,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **options,
    )  # fmt: skip


def sd3(path, with_t5=False):
    transformer = seeded(
        SD3Transformer2DModel, sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=40, caption_projection_dim=16, pooled_projection_dim=32,
        out_channels=4, pos_embed_max_size=8,
    )  # fmt: skip
    pipe = StableDiffusion3Pipeline(
        transformer, FlowMatchEulerDiscreteScheduler(shift=3.0), kl(4), clip(), tokenizer(), clip(), tokenizer(),
        t5(40) if with_t5 else None, tokenizer() if with_t5 else None,
    )  # fmt: skip
    pipe.save_pretrained(path)


def flux(path):
    transformer = seeded(
        FluxTransformer2DModel, patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=16, guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_shift=1.15)
    FluxPipeline(
        scheduler, kl(4), clip(kind=CLIPTextModel), tokenizer(), t5(), tokenizer(), transformer
    ).save_pretrained(path)


def sd(path, prediction="epsilon"):
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction,
        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    StableDiffusionPipeline(
        kl(4),
        clip(kind=CLIPTextModel),
        tokenizer(),
        unet(cross_attention_dim=16),
        scheduler,
        None,
        None,
        requires_safety_checker=False,
    ).save_pretrained(path)


def sdxl(path):
    network = unet(
        cross_attention_dim=32, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 16,
    )  # fmt: skip
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    StableDiffusionXLPipeline(
        kl(4), clip(kind=CLIPTextModel), clip(), tokenizer(), tokenizer(), network, scheduler
    ).save_pretrained(path)


BUILDERS = {"sd3": sd3, "flux": flux, "sd": sd, "sdxl": sdxl}
PIPELINES = {
    "sd3": StableDiffusion3Pipeline,
    "flux": FluxPipeline,
    "sd": StableDiffusionPipeline,
    "sdxl": StableDiffusionXLPipeline,
}
