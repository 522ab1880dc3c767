"""The memory of known styles: which one words mean, and what the pipeline makes of it."""

import pytest
import torch
import torch.nn.functional as F

from stylemamba import StyleMambaPipeline
from stylemamba.pipeline.prompt_fit import PromptFitConfig
from stylemamba.pipeline.style_memory import StyleMemory

WIDTH = 32


@pytest.fixture
def styles() -> torch.Tensor:
    return F.normalize(torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(3)), dim=-1)


def test_attention_by_cosine(styles):
    memory = StyleMemory.of(3 * styles, temperature=0.1)  # their lengths do not count
    prompt = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(4))
    wanted = []
    for vector in prompt.double():
        cosines = [float(vector @ style / vector.norm() / style.norm()) for style in styles.double()]
        weights = [torch.tensor(cosine / 0.1).exp() for cosine in cosines]
        mean = sum(weight * style for weight, style in zip(weights, styles.double(), strict=True))
        wanted.append(mean / mean.norm())
    torch.testing.assert_close(memory(prompt).double(), torch.stack(wanted), atol=1e-6, rtol=1e-6)


def test_strayed_words_come_back(styles):
    memory = StyleMemory.of(styles)
    strayed = F.normalize(styles + 0.4 * F.normalize(styles.roll(1, 0) - styles, dim=-1), dim=-1)
    before, after = ((embeds * styles).sum(-1) for embeds in (strayed, memory(strayed)))
    assert (after > before).all() and (after > 0.99).all()
    torch.testing.assert_close(memory(styles), styles, atol=1e-2, rtol=0)


def test_between_two_styles_there_is_something(styles):
    middle = F.normalize(styles[0] + styles[1], dim=-1)
    recalled = StyleMemory.of(styles)(middle)
    likeness = styles @ recalled
    torch.testing.assert_close(likeness[0], likeness[1], atol=1e-3, rtol=0)


class TestInThePipeline:
    @pytest.fixture
    def pipe(self, components, styles) -> StyleMambaPipeline:
        pipe = StyleMambaPipeline(**components(style_memory=StyleMemory.of(styles)))
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def test_prompts_are_recalled(self, pipe):
        heard = pipe.encoder.embed_texts(["ink", "a mosaic"])
        torch.testing.assert_close(pipe.encode_prompt(["ink", "a mosaic"]), pipe.style_memory(heard))
        torch.testing.assert_close(pipe.encode_prompt(["ink", "a mosaic"], recall=False), heard)

    def test_each_part_of_a_mixture_is_recalled(self, pipe):
        ink, mosaic = pipe.encode_prompt(["ink", "a mosaic"])
        mixed = pipe.encode_prompt([[("ink", 0.5), ("a mosaic", 0.5)]])[0]
        torch.testing.assert_close(mixed, F.normalize(ink + mosaic, dim=-1))

    def test_comes_back_from_a_folder(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path)
        loaded = StyleMambaPipeline.from_pretrained(tmp_path)
        torch.testing.assert_close(loaded.encode_prompt("ink"), pipe.encode_prompt("ink"))
        assert isinstance(loaded.style_memory, StyleMemory)

    def test_a_fit_aims_at_what_was_recalled(self, pipe):
        style = pipe.fit_style(torch.rand(1, 3, 32, 32), "ink", config=PromptFitConfig(epochs=1))
        torch.testing.assert_close(style.prompt_embeds, pipe.encode_prompt("ink")[0])
