"""The base model's parts: word tokenizer, two text encoders, transformer."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, PreTrainedTokenizerFast

from .captions import BACKGROUNDS, BLOB, STYLES

MAX_WORDS = 16
TEXT_WIDTH = 64
LAYERS = 3
"""Also the number of heads: ComfyUI reads the width of an SD3 transformer off its depth (64 x depth)."""
HEAD_WIDTH = 64
LATENT_SIDE = 16
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
SPARE_WORDS = ("a", "an", "of", "on", "with", "and", "the", "emoji", "sks", "toy", "pixel", "sketch")
"""Words users may bring that no training caption has: they get a vector of their own, not <unk>'s."""
SPLIT = "[^a-z0-9]+"


def build_tokenizer(names: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each word of the names, styles and backgrounds."""
    words = [*SPECIAL, "style", "background", *SPARE_WORDS, BLOB, *STYLES.values(), *BACKGROUNDS]
    words += [word for name in names for word in re.split(SPLIT, name.lower()) if word]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLIT), "removed")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=MAX_WORDS,
    )


def token_ids(tokenizer: PreTrainedTokenizerFast, captions: Sequence[str]) -> Tensor:
    """N captions -> int64 [N, MAX_WORDS]."""
    encoded = tokenizer(list(captions), padding="max_length", max_length=MAX_WORDS, truncation=True)
    return torch.tensor(encoded["input_ids"])


def new_text_encoder(vocabulary: int) -> nn.Module:
    """An untrained CLIP text model of 2 narrow layers."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=MAX_WORDS,
            projection_dim=TEXT_WIDTH,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )


def new_transformer() -> nn.Module:
    """An untrained SD3 transformer of 3.8 M weights, for latents [B, 16, 16, 16]."""
    transformer: Any = SD3Transformer2DModel(
        sample_size=LATENT_SIDE,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=LAYERS,
        num_attention_heads=LAYERS,
        attention_head_dim=HEAD_WIDTH,
        joint_attention_dim=2 * TEXT_WIDTH,
        caption_projection_dim=LAYERS * HEAD_WIDTH,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=LATENT_SIDE,
    )
    learn_positions(transformer)
    return transformer


def learn_positions(transformer: nn.Module) -> None:
    """Make the position table a parameter, started from sines that tell 16 places well apart.

    The stock table (a buffer of the same name, so the file does not change) is made for hundreds of
    places: over 16 of them most of its columns hardly vary.
    """
    width = LAYERS * HEAD_WIDTH
    octave = 100.0 ** (-torch.arange(width // 4) / (width // 4))
    angle = torch.arange(LATENT_SIDE).float()[:, None] * octave
    axis = torch.cat([angle.sin(), angle.cos()], 1)  # [16, width / 2]
    across = axis[None, :].expand(LATENT_SIDE, -1, -1)
    down = axis[:, None].expand(-1, LATENT_SIDE, -1)
    table = torch.cat([across, down], -1).reshape(1, LATENT_SIDE**2, width).contiguous()
    embedding = transformer.get_submodule("pos_embed")
    del embedding.pos_embed
    embedding.register_parameter("pos_embed", nn.Parameter(table))


@dataclass(frozen=True)
class Networks:
    """The three networks that are trained together."""

    text_encoder: nn.Module
    text_encoder_2: nn.Module
    transformer: nn.Module

    @classmethod
    def new(cls, vocabulary: int) -> "Networks":
        """Untrained networks; draws from torch's global generator."""
        return cls(new_text_encoder(vocabulary), new_text_encoder(vocabulary), new_transformer())

    def modules(self) -> nn.ModuleDict:
        """All three under their names, for parameters and state dicts."""
        return nn.ModuleDict(vars(self))

    def encode(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids [B, L] -> context [B, L, 128] and pooled [B, 128], joined as SD3's pipeline does."""
        outputs = [encoder(ids, output_hidden_states=True) for encoder in self.encoders()]
        context = torch.cat([output.hidden_states[-2] for output in outputs], -1)
        return context, torch.cat([output.text_embeds for output in outputs], -1)

    def encoders(self) -> tuple[nn.Module, nn.Module]:
        """Both text encoders, in the pipeline's order."""
        return self.text_encoder, self.text_encoder_2

    def velocity(self, x: Tensor, sigma: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
        """The transformer's output at noise levels sigma [B]: noise - x0, shape of x, float32."""
        output = self.transformer(
            x,
            encoder_hidden_states=context,
            pooled_projections=pooled,
            timestep=sigma * 1000,
            return_dict=False,
        )
        return output[0].float()
