"""The readings of equation 1 against the formulas of the table in methods 1.2, written out once more."""

import pytest
import torch

from stylemamba.pipeline.adaln import READINGS, eq1_reading, layer_norm

NAMES = ("alpha1", "mu1", "sigma1", "alpha2", "sigma2", "mu2")


def norm(x, eps=1e-6):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()


FORMULAS = {
    "A": lambda x, ssm, mlp, a1, m1, s1, a2, s2, m2: (
        (h := x + a1 * ssm((1 + m1) * norm(x) + s1)) + a2 * mlp((1 + m2) * norm(h) + s2)
    ),
    "B": lambda x, ssm, mlp, a1, m1, s1, a2, s2, m2: (
        (1 + a2) * norm(x + a1 * ssm((1 + m1) * norm(x) + s1)) + s2
    ),
    "C": lambda x, ssm, mlp, a1, m1, s1, a2, s2, m2: a2 * norm(x + (a1 * ssm(norm(x)) * m1 + s1)) + s2,
    "D": lambda x, ssm, mlp, a1, m1, s1, a2, s2, m2: norm(x + a1 * ssm(norm(x)) * m1 + s1) + a2 + s2,
}


def ssm(tokens):
    return tokens.cumsum(-2).sin()


def mlp(tokens):
    return tokens**3 - 1


@pytest.fixture
def tokens():
    return torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def modulation():
    """One vector per picture and name, (B, 1, d)."""
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(2, 1, 6, generator=generator, dtype=torch.float64) for name in NAMES}


@pytest.mark.parametrize("reading", READINGS)
def test_each_reading_is_its_formula(reading, tokens, modulation):
    wanted = FORMULAS[reading](tokens, ssm, mlp, *modulation.values())
    torch.testing.assert_close(eq1_reading(reading, tokens, ssm, mlp, **modulation), wanted)


@pytest.mark.parametrize("reading", READINGS)
def test_each_reading_depends_on_exactly_the_vectors_it_names(reading, tokens, modulation):
    before = eq1_reading(reading, tokens, ssm, mlp, **modulation)
    used = {
        name
        for name in NAMES
        if not torch.equal(
            before, eq1_reading(reading, tokens, ssm, mlp, **{**modulation, name: modulation[name] + 1})
        )
    }
    assert used == set(READINGS[reading])


def test_closed_gates_of_reading_a_return_the_tokens_bit_for_bit(tokens, modulation):
    closed = {**modulation, "alpha1": 0.0, "alpha2": 0.0}
    assert torch.equal(eq1_reading("A", tokens, ssm, mlp, **closed), tokens)


def test_the_printed_form_knows_only_a_product_and_a_sum(tokens, modulation):
    """Two redundant pairs: why reading D is for the ablation only."""
    moved = {
        **modulation,
        "alpha1": modulation["alpha1"] * 4,
        "mu1": modulation["mu1"] / 4,
        "alpha2": modulation["alpha2"] + 1,
        "sigma2": modulation["sigma2"] - 1,
    }
    before, after = (eq1_reading("D", tokens, ssm, None, **m) for m in (modulation, moved))
    torch.testing.assert_close(after, before)


def test_layer_norm_has_biased_variance_and_epsilon_under_the_root(tokens):
    torch.testing.assert_close(layer_norm(tokens * 1e-3), norm(tokens * 1e-3))
    assert layer_norm(torch.full((1, 4), 3.0)).abs().max() == 0


def test_an_unknown_reading_is_named_with_the_known_ones(tokens):
    with pytest.raises(ValueError, match="reading is 'E', wanted one of A, B, C, D"):
        eq1_reading("E", tokens, ssm, mlp, 0, 0, 0, 0, 0)
