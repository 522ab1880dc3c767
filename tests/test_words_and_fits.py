"""Two benchmarks of the bundled model: what popular words recall, and what a fit adds."""

import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

import fits  # noqa: E402
import words  # noqa: E402

from stylemamba import StyleMambaPipeline  # noqa: E402


def test_recalled_is_the_attention_of_the_memory_over_its_styles():
    pipe = StyleMambaPipeline.from_pretrained("tiny")
    prompts = ["van gogh", "a mosaic of small tiles"]
    shares = words.recalled(pipe, prompts)
    torch.testing.assert_close(shares.sum(1), torch.ones(2))
    mixed = F.normalize(shares @ pipe.style_memory.styles.float(), dim=-1)
    torch.testing.assert_close(mixed, pipe.encode_prompt(prompts).float(), atol=1e-4, rtol=0)


def test_chance_is_the_share_of_styles_that_are_accepted():
    assert words.chance({"a": ["x"], "b": ["x", "y", "z"]}, 10) == pytest.approx(0.2)


def test_popular_prompts_are_many():
    asked = json.loads(words.PROMPTS.read_text(encoding="utf-8"))
    assert len(asked) >= 250 and len({prompt.casefold() for prompt in asked}) == len(asked)


def test_the_table_of_fits_counts_what_came_nearer_apart_for_photos_that_were_fitted_on():
    def row(prompt, fitted, before, after):
        scores = [{"distance": d, "rank": r, "ssim": 0.5} for d, r in (before, after)]
        return {
            "prompt": prompt,
            "fitted on": fitted,
            "seconds": 9.6,
            "before": scores[0],
            "after": scores[1],
        }

    text = fits.as_markdown(
        [
            row("a", True, (200, 7), (100, 4)),
            row("a", False, (100, 0), (150, 0)),
            row("b", True, (80, 1), (60, 0)),
        ],
        "tiny",
    )
    assert "| a | fitted on | 200 | 100 | 7 | 4 | 0.50 | 0.50 | 10 |" in text
    seen, unseen = (line for line in text.splitlines() if line.startswith("Photos"))
    assert "for 2 of 2, median ratio of distances 0.62" in seen and "1 before, 2 after" in seen
    assert "for 0 of 1, median ratio of distances 1.50" in unseen and "1 before, 1 after" in unseen
