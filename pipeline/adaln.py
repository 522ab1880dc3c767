"""Adaptive layer normalisation: the readings of the paper's equation 1.

Responsible for: how five or six modulation vectors, made from the prompt, steer a normalised token stream. Knows
nothing of where the vectors come from, nor of what mixes the tokens.

The paper prints M = (LN(x + alpha1 * SSM(LN(x)) * mu1 + sigma1)) + alpha2 + sigma2, which holds two redundant pairs.
Four readings of it are kept for the ablation; "A" is the default (docs/how-it-works.md says why).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6
READINGS = {  # reading -> the modulation vectors it needs, in the order the linear layer gives them
    "A": ("sigma1", "mu1", "alpha1", "sigma2", "mu2", "alpha2"),
    "B": ("sigma1", "mu1", "alpha1", "sigma2", "alpha2"),
    "C": ("sigma1", "mu1", "alpha1", "sigma2", "alpha2"),
    "D": ("sigma1", "mu1", "alpha1", "sigma2", "alpha2"),
}
# Vectors that multiply a branch have to start at one wherever zero would leave two zero factors in one product,
# since then neither gets a gradient.
STARTS_AT_ONE = {"A": (), "B": (), "C": ("mu1", "alpha2"), "D": ("mu1",)}


def layer_norm(tokens: Tensor, eps: float = EPS) -> Tensor:
    """LayerNorm over the last axis without affine parameters, biased variance."""
    return F.layer_norm(tokens, tokens.shape[-1:], eps=eps)


def modulate(tokens: Tensor, mu: Tensor, sigma: Tensor, eps: float = EPS) -> Tensor:
    """LN(tokens) * (1 + mu) + sigma, in one pass over the tokens after the norm's own."""
    return torch.addcmul(sigma, layer_norm(tokens, eps), 1 + mu)


def eq1_reading(
    reading: str,
    tokens: Tensor,
    ssm: Callable[[Tensor], Tensor],
    mlp: Callable[[Tensor], Tensor] | None,
    alpha1: Tensor | float,
    mu1: Tensor | float,
    sigma1: Tensor | float,
    alpha2: Tensor | float,
    sigma2: Tensor | float,
    mu2: Tensor | float = 0.0,
    eps: float = EPS,
) -> Tensor:
    """Equation 1 on `tokens` (..., L, d); `ssm` and `mlp` map tokens to tokens. Only reading A uses `mlp` and `mu2`."""
    x = tokens
    alpha1, mu1, sigma1, alpha2, sigma2, mu2 = (
        v if isinstance(v, Tensor) else x.new_tensor(v) for v in (alpha1, mu1, sigma1, alpha2, sigma2, mu2)
    )
    if reading == "A":  # a DiT block with the attention replaced by the state-space model
        h = torch.addcmul(x, alpha1, ssm(modulate(x, mu1, sigma1, eps)))
        return torch.addcmul(h, alpha2, mlp(modulate(h, mu2, sigma2, eps)))
    if reading == "B":  # five parameters, as DiT's final layer
        return modulate(torch.addcmul(x, alpha1, ssm(modulate(x, mu1, sigma1, eps))), alpha2, sigma2, eps)
    if reading == "C":  # modulated after the state-space model
        return layer_norm(x + alpha1 * ssm(layer_norm(x, eps)) * mu1 + sigma1, eps) * alpha2 + sigma2
    if reading == "D":  # as printed
        return layer_norm(x + alpha1 * ssm(layer_norm(x, eps)) * mu1 + sigma1, eps) + alpha2 + sigma2
    raise ValueError(f"reading is {reading!r}, wanted one of {', '.join(READINGS)}.")
