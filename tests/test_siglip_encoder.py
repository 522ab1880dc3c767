"""Words and pictures in the space of SigLIP, with the towers of transformers at tiny size."""

import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Siglip2ImageProcessor,
    Siglip2TextConfig,
    Siglip2TextModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from stylemamba import SiglipEncoder

SHAPE = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {
    **SHAPE, "vocab_size": 200, "max_position_embeddings": 16, "projection_size": 32,
    "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def encoder(components):
    parts = components()
    return SiglipEncoder(parts["text_encoder"], parts["tokenizer"], parts["image_encoder"])


def fixed_tower(image_size=32, patch_size=8):
    return SiglipVisionModel(SiglipVisionConfig(**SHAPE, image_size=image_size, patch_size=patch_size)).eval()


def naflex_tower(num_patches=16, patch_size=8):
    return Siglip2VisionModel(
        Siglip2VisionConfig(**SHAPE, num_patches=num_patches, patch_size=patch_size)
    ).eval()


def photo(height=32, width=32):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_tensor(array):
    return torch.tensor(array).permute(2, 0, 1)[None] / 255


class TestTexts:
    @torch.no_grad()
    def test_padded_at_the_right_to_the_full_length_of_the_tower_and_no_attention_mask(self, encoder):
        ids = encoder.tokenize(["stained glass"])
        assert ids.shape == (1, 16) and ids[0, 0] != 0 and ids[0, -1] == 0
        expected = F.normalize(encoder.text_encoder(input_ids=ids).pooler_output, dim=-1)
        torch.testing.assert_close(encoder.embed_texts(["stained glass"]), expected)
        masked = encoder.text_encoder(input_ids=ids, attention_mask=ids.ne(0).long()).pooler_output
        assert not torch.allclose(F.normalize(masked, dim=-1), expected, atol=1e-4)

    @torch.no_grad()
    def test_limits_and_sides_left_in_the_tokenizer_do_not_count(self, encoder):
        expected = encoder.embed_texts(["stained glass"])
        encoder.tokenizer.model_max_length = 3
        encoder.tokenizer.padding_side = "left"
        assert torch.equal(encoder.embed_texts(["stained glass"]), expected)

    def test_upper_case_reads_as_lower_case_with_any_tokenizer(self, encoder):
        cased = Tokenizer(models.BPE(unk_token="<unk>"))
        cased.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.BpeTrainer(special_tokens=["<pad>", "<unk>"], show_progress=False)
        cased.train_from_iterator(["stained glass", "Stained Glass"], trainer)
        encoder.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=cased, pad_token="<pad>", unk_token="<unk>"
        )
        assert (
            encoder.tokenizer("Stained Glass")["input_ids"] != encoder.tokenizer("stained glass")["input_ids"]
        )
        assert torch.equal(encoder.tokenize(["Stained Glass"]), encoder.tokenize(["stained glass"]))

    @torch.no_grad()
    def test_a_text_too_long_is_cut_with_a_warning_and_means_what_is_left(self, encoder, caplog):
        with caplog.at_level(logging.WARNING):
            long = encoder.embed_texts(["glass " * 100])
        assert "has 100 tokens and is cut to 16" in caplog.text
        caplog.clear()
        with caplog.at_level(logging.WARNING, "stylemamba"):
            torch.testing.assert_close(long, encoder.embed_texts(["glass " * 16]))
        assert not [r for r in caplog.records if r.name.startswith("stylemamba")]

    @torch.no_grad()
    def test_unit_vectors_one_for_each_text_whatever_else_is_in_the_batch(self, encoder):
        texts = ["stained glass", "", "an ink drawing on paper", "🎨 пейзаж"]
        together = encoder.embed_texts(texts)
        assert together.shape == (4, 32)
        torch.testing.assert_close(together.norm(dim=-1), torch.ones(4))
        for text, embeds in zip(texts, together, strict=True):
            torch.testing.assert_close(encoder.embed_texts([text])[0], embeds)

    @torch.no_grad()
    def test_naflex_text_towers_read_the_same_way(self, components):
        tower = Siglip2TextModel(Siglip2TextConfig(**TEXT)).eval()
        encoder = SiglipEncoder(tower, components()["tokenizer"])
        ids = encoder.tokenize(["stained glass"])
        expected = F.normalize(tower(input_ids=ids).pooler_output, dim=-1)
        torch.testing.assert_close(encoder.embed_texts(["stained glass"]), expected)

    def test_half_precision_towers_give_float32_unit_vectors(self, encoder):
        encoder.text_encoder.to(torch.bfloat16)
        embeds = encoder.embed_texts(["stained glass"])
        assert embeds.dtype == torch.float32
        torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(1))

    def test_gradients_reach_the_tower(self, encoder):
        encoder.embed_texts(["stained glass"])[0, 0].backward()
        assert encoder.text_encoder.get_input_embeddings().weight.grad.abs().sum() > 0


class TestPictures:
    @pytest.mark.parametrize(("size", "patch"), [(32, 8), (48, 16), (28, 14)])
    @torch.no_grad()
    def test_fixed_size_towers_see_what_their_own_processor_shows_them(self, size, patch):
        tower = fixed_tower(size, patch)
        encoder = SiglipEncoder(None, image_encoder=tower)
        assert (encoder.image_size, encoder.patch_size) == (size, patch)
        processor = SiglipImageProcessor(size={"height": size, "width": size})
        pixels = processor(Image.fromarray(photo(size, size)), return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(encoder.pixels(as_tensor(photo(size, size))), pixels)
        expected = F.normalize(tower(pixel_values=pixels).pooler_output, dim=-1)
        torch.testing.assert_close(encoder.embed_images(as_tensor(photo(size, size))), expected)

    @pytest.mark.parametrize(("patches", "patch"), [(16, 8), (9, 16), (25, 4)])
    @torch.no_grad()
    def test_naflex_towers_see_what_their_own_processor_shows_them(self, patches, patch):
        tower, side = naflex_tower(patches, patch), round(patches**0.5) * patch
        encoder = SiglipEncoder(None, image_encoder=tower)
        assert (encoder.image_size, encoder.patch_size) == (side, patch)
        processor = Siglip2ImageProcessor(patch_size=patch, max_num_patches=patches)
        inputs = processor(Image.fromarray(photo(side, side)), return_tensors="pt")
        expected = F.normalize(tower(**inputs).pooler_output, dim=-1)
        torch.testing.assert_close(encoder.embed_images(as_tensor(photo(side, side))), expected)

    @pytest.mark.parametrize("tower", [fixed_tower, naflex_tower])
    def test_any_size_gives_unit_vectors_and_gradients_in_every_pixel(self, tower):
        encoder = SiglipEncoder(None, image_encoder=tower())
        images = torch.rand(2, 3, 50, 37, requires_grad=True)
        embeds = encoder.embed_images(images)
        assert embeds.shape == (2, 32) and embeds.dtype == torch.float32
        torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(2))
        embeds[:, 0].sum().backward()
        assert torch.isfinite(images.grad).all() and images.grad.ne(0).float().mean() > 0.99

    @pytest.mark.parametrize("tower", [fixed_tower, naflex_tower])
    @torch.no_grad()
    def test_a_picture_means_the_same_alone_and_in_a_batch(self, tower):
        encoder, images = SiglipEncoder(None, image_encoder=tower()), torch.rand(3, 3, 40, 40)
        together = encoder.embed_images(images)
        for image, embeds in zip(images, together, strict=True):
            torch.testing.assert_close(encoder.embed_images(image[None])[0], embeds)

    def test_shrinking_does_not_alias(self, encoder):
        assert encoder.pixels(torch.rand(1, 3, 256, 256)).std() < 0.15  # noise averages out

    def test_half_precision_towers_give_float32_unit_vectors(self, encoder):
        encoder.image_encoder.to(torch.bfloat16)
        embeds = encoder.embed_images(torch.rand(1, 3, 32, 32))
        assert embeds.dtype == torch.float32
        torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(1))


@torch.no_grad()
def test_cosine_scale_and_bias_give_the_logits_of_the_whole_model(components):
    vision = {**SHAPE, "image_size": 32, "patch_size": 8}
    model = SiglipModel(SiglipConfig(text_config=TEXT, vision_config=vision)).eval()
    model.logit_scale.fill_(2.3)
    model.logit_bias.fill_(-7.0)
    encoder = SiglipEncoder(
        model.text_model, components()["tokenizer"], model.vision_model,
        logit_scale=model.logit_scale.exp().item(), logit_bias=model.logit_bias.item(),
    )  # fmt: skip
    ids, texts = (
        encoder.tokenize(["stained glass", "very long"]),
        encoder.embed_texts(["stained glass", "very long"]),
    )
    images = torch.rand(3, 3, 32, 32)
    logits = encoder.embed_images(images) @ texts.T * encoder.logit_scale + encoder.logit_bias
    expected = model(input_ids=ids, pixel_values=encoder.pixels(images)).logits_per_image
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


class TestMissingParts:
    def test_each_side_works_alone(self, encoder):
        assert SiglipEncoder(encoder.text_encoder, encoder.tokenizer).embed_texts(["glass"]).shape == (1, 32)
        alone = SiglipEncoder(None, image_encoder=encoder.image_encoder)
        assert alone.embed_images(torch.rand(1, 3, 32, 32)).shape == (1, 32)

    def test_the_error_names_what_is_missing_and_how_to_get_it(self, encoder):
        with pytest.raises(
            ValueError, match=r"text_encoder is None.*from_parts\(text_encoder=.*prompt_embeds"
        ):
            SiglipEncoder(None, image_encoder=encoder.image_encoder).embed_texts(["glass"])
        with pytest.raises(ValueError, match=r"image_encoder is None.*from_parts\(image_encoder="):
            SiglipEncoder(encoder.text_encoder, encoder.tokenizer).embed_images(torch.rand(1, 3, 32, 32))
        with pytest.raises(ValueError, match="tokenizer is None"):
            SiglipEncoder(encoder.text_encoder).embed_texts(["glass"])


def test_its_name_tells_the_weights_apart_and_no_folder_of_this_machine(pipe, tmp_path):
    before = pipe.encoder.name
    pipe.image_encoder.save_pretrained(tmp_path / "tower")
    moved = type(pipe.image_encoder).from_pretrained(tmp_path / "tower")
    name = SiglipEncoder(None, image_encoder=moved).name
    assert str(tmp_path) not in name and name.rsplit("@")[1] == before.rsplit("@")[1]
    with torch.no_grad():
        next(moved.parameters()).mul_(-1)
    assert SiglipEncoder(None, image_encoder=moved).name != name
