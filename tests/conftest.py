"""Tiny real components: every class is the one a user loads, only smaller and with random weights."""

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    SiglipTextConfig,
    SiglipTextModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from stylemamba import (
    MambaST,
    MambaSTPipeline,
    SaMam,
    SaMamPipeline,
    StyleFusion,
    StyleMambaPipeline,
    VGGFeatures,
)
from stylemamba.pipeline.text_to_style import TextToStyle

# Tiny tensors gain nothing from threads, and lose much where another process wants the same cores.
torch.set_num_threads(1)

WORDS = [
    "a plain photo", "stained glass", "ukiyo-e woodblock print", "an ink drawing on paper", "neon city at night",
    "very long", "oil painting in the style of monet", "mosaic of small stones",
]  # fmt: skip
WIDTH = 32  # of both towers


def tiny_tokenizer(length: int = 16) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=["<pad>", "</s>", "<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=length,
        model_input_names=["input_ids"],
    )


def tiny_text_encoder() -> SiglipTextModel:
    return SiglipTextModel(
        SiglipTextConfig(
            vocab_size=200, hidden_size=WIDTH, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=16, projection_size=WIDTH, pad_token_id=0, eos_token_id=1, bos_token_id=2,
        )
    ).eval()  # fmt: skip


def tiny_image_encoder() -> SiglipVisionModel:
    return SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=WIDTH, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
        )
    ).eval()  # fmt: skip


def tiny_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        in_channels=3,
        out_channels=3,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=4,
        norm_num_groups=2,
    ).eval()


def tiny_taesd() -> AutoencoderTiny:
    return AutoencoderTiny(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
    ).eval()


def awake(fusion: StyleFusion) -> StyleFusion:
    """A fusion that does something: the identity it starts as would hide mistakes."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in fusion.parameters():
            if parameter.ndim > 1 or not parameter.any():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return fusion.eval()


def painting(model: torch.nn.Module) -> torch.nn.Module:
    """The same for SaMam and Mamba-ST."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
            if name.startswith("decoder.") and parameter.shape == (3,):
                parameter.fill_(0.5)  # about the middle of the colours
    return model.eval()


def tiny_samam(reads_prompts: bool = False) -> SaMamPipeline:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SaMam(8, 4, 8, encoder_depth=1, groups=1, group_depth=1, decoder_width=16, d_state=3)
        parts = {}
        if reads_prompts:
            head = TextToStyle(WIDTH, 8, hidden_size=16).eval()
            parts = {"text_encoder": tiny_text_encoder(), "tokenizer": tiny_tokenizer(), "text_head": head}
        return SaMamPipeline(painting(model), style_size=64, **parts)


def tiny_mamba_st() -> MambaSTPipeline:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MambaST(8, 4, encoder_depth=1, depth=1, decoder_width=16, d_state=3)
        return MambaSTPipeline(painting(model))


def tiny_components(vae=tiny_vae, **overrides) -> dict:
    """Arguments of `StyleMambaPipeline`, the same on every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        components = {
            "vae": vae(),
            "text_encoder": tiny_text_encoder(),
            "tokenizer": tiny_tokenizer(),
            "fusion": awake(StyleFusion.from_preset("tiny", cond_dim=WIDTH)),
            "image_encoder": tiny_image_encoder(),
            "style_decoder": None,
            "perceptual": VGGFeatures(channels=(4, 4, 8, 8, 8)).eval(),
            "style_memory": None,
        }
    return {**components, **overrides}


@pytest.fixture(scope="session")
def components():
    """`components()` gives fresh tiny components; keyword arguments replace some."""
    return tiny_components


@pytest.fixture(scope="session")
def samam():
    return tiny_samam


@pytest.fixture(scope="session")
def mamba_st():
    return tiny_mamba_st


@pytest.fixture
def pipe(components) -> StyleMambaPipeline:
    pipe = StyleMambaPipeline(**components())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def taesd():
    return tiny_taesd


@pytest.fixture
def photo() -> torch.Tensor:
    """A picture with edges and colours, (1, 3, 48, 40) in [0, 1]."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 48), torch.linspace(0, 1, 40), indexing="ij")
    disc = ((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.1).float()
    return torch.stack([x, y, disc])[None] * 0.9 + 0.05
