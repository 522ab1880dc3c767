"""Scores of a finished picture, each with what one needs to read it.

Responsible for the formulas and for the report of `score`.  It does not know how the picture was made; the networks
that some scores need are given to it.  No score is comparable with one taken by another encoder, value range or
resolution, which is why each row of the report carries its own.
"""

import json
import logging
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .images import Picture, read_images
from .losses import content_loss, directional_cosine, full_precision, mean_std_loss

logger = logging.getLogger(__name__)

_SSIM_WINDOW = 11

# Pixels


def _checked_images(a: Tensor, b: Tensor, data_range: float) -> tuple[Tensor, Tensor]:
    """Both images as (B, C, H, W) in full precision, after checking that `data_range` is what they use."""
    if a.shape != b.shape or not 2 <= a.dim() <= 4:
        raise ValueError(
            f"got images {tuple(a.shape)} and {tuple(b.shape)}; wanted equal (H, W), (C, H, W) or (B, C, H, W)"
        )
    extremes = torch.stack([a.min(), a.max(), b.min(), b.max()])  # NaN passes through, and fails below
    low, high = extremes.min().item(), extremes.max().item()
    slack = 1e-6 * data_range
    if not -slack <= low <= high <= data_range + slack:
        raise ValueError(
            f"got values from {low:.3g} to {high:.3g}; wanted all in [0, {data_range:g}]: scale or clamp the images"
        )
    return tuple(full_precision(image)[(None,) * (4 - image.dim())] for image in (a, b))


def ssim(a: Tensor, b: Tensor, data_range: float = 1.0) -> Tensor:
    """Structural similarity: 11x11 Gaussian of sigma 1.5, mean over channels and over the window's valid positions.

    a, b: (H, W), (C, H, W) or (B, C, H, W) within [0, data_range].  A wrong `data_range` is what makes unrelated
    pictures score 0.98, so values outside it are an error.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = _checked_images(a, b, data_range)
    if min(a.shape[-2:]) < _SSIM_WINDOW:
        raise ValueError(
            f"got images of {a.shape[-2]}x{a.shape[-1]}; wanted at least 11x11, the size of the window"
        )
    _, everywhere = structural_similarity_index_measure(
        a, b, sigma=1.5, kernel_size=_SSIM_WINDOW, data_range=data_range, return_full_image=True
    )
    edge = _SSIM_WINDOW // 2  # torchmetrics pads the images; there the window sees pixels that do not exist
    return everywhere[..., edge:-edge, edge:-edge].mean()


def psnr(a: Tensor, b: Tensor, data_range: float = 1.0) -> Tensor:
    """`10 * log10(data_range^2 / MSE)` in dB, infinite for equal images; arguments as for `ssim`."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    return peak_signal_noise_ratio(*_checked_images(a, b, data_range), data_range=data_range)


# Distributions and feature maps


def frechet_distance(m1: Tensor, S1: Tensor, m2: Tensor, S2: Tensor) -> Tensor:
    """`|m1 - m2|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2))` of two Gaussians, in float64 on the CPU."""
    m1, S1, m2, S2 = (tensor.cpu().double() for tensor in (m1, S1, m2, S2))

    def root(covariance: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(covariance)
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.mT

    # With R the roots, Tr(S) = |R|^2 and Tr((S1 S2)^(1/2)) is the sum of the singular values of R1 R2.  Unlike a root
    # of the product this is exact for the singular covariances that fewer samples than features give, and never < 0.
    R1, R2 = root(S1), root(S2)
    overlap = torch.linalg.svdvals(R1 @ R2).sum()
    return (m1 - m2).square().sum() + R1.square().sum() + R2.square().sum() - 2 * overlap


def fid(a: Tensor, b: Tensor) -> Tensor:
    """`frechet_distance` of the Gaussians through two sets of features, (N, D) and (M, D).

    Needs N, M > 1.  With few samples it is biased upwards, and it means nothing without the name of the network and
    the two counts: a value by other features, or of another count, is on another scale.
    """
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            f"got feature sets {tuple(a.shape)} and {tuple(b.shape)}; wanted (N, D) and (M, D) of one network, N, M > 1"
        )
    (m1, S1), (m2, S2) = ((rows.mean(0), torch.atleast_2d(rows.T.cov())) for rows in (a.double(), b.double()))
    return frechet_distance(m1, S1, m2, S2)


def artfid(lpips: Tensor | float, fid: Tensor | float) -> Tensor | float:
    """`(1 + LPIPS) * (1 + FID)`: content kept times style reached, lower is better."""
    return (1 + lpips) * (1 + fid)


def cfsd(stylised: Tensor, content: Tensor, *, rows: int = 1024) -> Tensor:
    """Content feature structural distance: `sum over positions of KL(S_content || S_stylised)`, divided by the batch.

    `S = softmax(F F^T)` row by row, F the features (B, C, H, W) of relu3_1 divided by C.  Only `rows` rows of S are
    held at a time: at 512 px the whole of it is 2 GiB.  The value grows with the resolution.  In double precision where the
    device has it: rows that are nearly uniform differ by less than single precision can tell.
    """
    if stylised.shape != content.shape:
        raise ValueError(
            f"got features {tuple(stylised.shape)} and {tuple(content.shape)}; wanted equal shapes"
        )
    batch, channels = stylised.shape[:2]
    exact = torch.float32 if stylised.device.type == "mps" else torch.float64
    f_s, f_c = (f.to(exact).flatten(2).mT / channels for f in (stylised, content))  # (B, H*W, C)
    total = f_s.new_zeros(())
    with torch.autocast(stylised.device.type, enabled=False):
        for chunk_s, chunk_c in zip(f_s.split(rows, 1), f_c.split(rows, 1), strict=True):
            log_q = torch.log_softmax(chunk_s @ f_s.mT, dim=-1)  # (B, rows, H*W)
            log_p = torch.log_softmax(chunk_c @ f_c.mT, dim=-1)
            total = total + F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    return (total / batch).to(full_precision(stylised).dtype)


# Embeddings


def cosine(image: Tensor, text: Tensor) -> Tensor:
    """Cosine of image and text embeddings along the last axis."""
    return F.cosine_similarity(full_precision(image), full_precision(text), dim=-1)


def clipscore(image: Tensor, text: Tensor) -> Tensor:
    """`2.5 * max(cos, 0)`."""
    return 2.5 * cosine(image, text).clamp(min=0)


def siglip_probability(cosine: Tensor, scale: float, bias: float) -> Tensor:
    """`sigmoid(scale * cos + bias)`; the scale is already exponentiated.  Both belong to the checkpoint."""
    return torch.sigmoid(scale * full_precision(cosine) + bias)


def aesthetic_linear(embedding: Tensor, weight: Tensor, bias: Tensor | float) -> Tensor:
    """Simulacra's rating from 1 to 10, higher is better: `w . (unit(e) * sqrt(d)) + b`, e (..., d) of CLIP ViT-B/16."""
    unit = F.normalize(full_precision(embedding), dim=-1)
    return (unit * embedding.shape[-1] ** 0.5 * full_precision(weight)).sum(-1) + bias


# The report


def bootstrap_interval(
    values: Sequence[float] | Tensor,
    seed: int,
    *,
    groups: Sequence[int] | None = None,
    statistic: Callable[[Tensor], Tensor | float] | None = None,
    resamples: int = 2000,
) -> tuple[float, float]:
    """The 95 % interval of a statistic, the mean if none is given, over pairs drawn again with replacement.

    values: one number, or one row of features, for each pair.
    groups: one number for each pair; pairs of one group are drawn together.  Pictures of one prompt (or one photo)
        resemble each other, and an interval that takes them for independent is too narrow.
    statistic: of a Tensor like `values`.  The resamples of one that is biased by repeated rows, such as `fid`, lie beside
        its value; the interval is their spread, moved back by that bias.
    """
    values = torch.as_tensor(values, dtype=torch.float64)
    groups = torch.arange(len(values)) if groups is None else torch.as_tensor(groups)
    if len(values) == 0 or len(groups) != len(values):
        raise ValueError(
            f"got {len(values)} values and {len(groups)} groups; wanted at least one value, a group for each"
        )
    members = [(groups == group).nonzero()[:, 0] for group in groups.unique()]
    value = float(values.mean() if statistic is None else statistic(values))
    if not math.isfinite(value):  # the PSNR of equal pictures
        return value, value
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(members), (resamples, len(members)), generator=generator)  # of groups
    if statistic is None:
        sums = torch.stack([values[rows].sum() for rows in members])
        counts = torch.tensor([len(rows) for rows in members])
        found = sums[draws].sum(1) / counts[draws].sum(1)
    else:
        rows = (torch.cat([members[group] for group in draw]) for draw in draws.tolist())
        found = torch.tensor([float(statistic(values[row])) for row in rows], dtype=torch.float64)
    bias = 0.0 if statistic is None else found.mean() - value  # a mean has none
    low, high = torch.quantile(found, torch.tensor([0.025, 0.975], dtype=torch.float64)) - bias
    return low.item(), high.item()


def as_json(value: object) -> str:
    """A report, or what holds one, as JSON, which has no infinity: null stands for it, the PSNR of equal pictures."""

    def finite(value: object) -> object:
        if isinstance(value, dict):
            return {key: finite(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [finite(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(value), indent=2)


def report_row(
    values: Sequence[Tensor | float],
    *,
    resolution: str,
    encoder: str | None = None,
    resize: str | None = None,
    seed: int | None = None,
    groups: Sequence[int] | None = None,
) -> dict:
    """One score with what one needs to read it: the mean `value`, its `bootstrap_interval`, `per_image`, and how it was
    taken."""
    numbers = [float(value) for value in values]
    return {
        "value": sum(numbers) / len(numbers),
        "interval": list(bootstrap_interval(numbers, seed or 0, groups=groups)),
        "per_image": numbers,
        "encoder": encoder,
        "range": "[0, 1]",
        "resolution": resolution,
        "resize": resize,
        "pairs": len(numbers),
        "seed": seed,
    }


@torch.no_grad()
def score(
    stylized: Picture | Sequence[Picture],
    content: Picture | Sequence[Picture],
    prompt: str | Sequence[str] | None = None,
    *,
    style: Picture | Sequence[Picture] | None = None,
    encoder=None,
    perceptual=None,
    aesthetic=None,
    source_prompt: str = "a plain photo",
    seed: int | None = None,
) -> dict[str, dict]:
    """Every score that can be computed from what is given, each as a row that says how it was taken.

    stylized, content: pictures in any form, of equal sizes pair by pair; one content may serve all.
    prompt: one for all or one per picture; without it, or without `encoder`, no text score is given.
    style: pictures in the style asked for, of any sizes; together they say what it looks like.
    encoder: has `embed_images((B, 3, H, W) in [0, 1])` and `embed_texts(list)`, both giving unit vectors, `name`,
        `logit_scale` and `logit_bias` (None if unknown); one that is no SigLIP names its `family`, such as "clip".
        Judge with another one than the fit used: a fit can please its own encoder.
    perceptual: a `VGGFeatures`, or what stands in for it.
    aesthetic: an `AestheticRater`.
    seed: of the stylization, noted down; it also decides which pairs the intervals draw.

    Rows: `ssim`, `psnr`; with `perceptual` also `lpips`, `vgg_normalised`, `vgg_clipstyler`, `cfsd`, and with `style`
    too `mean_std` (AdaIN's style distance, the mean over the style pictures); with `encoder` and `prompt` also
    `siglip_cos`, `siglip_prob` (named after the family) and `dir_sim`; with `aesthetic` also `aesthetic`, the
    rating, and `aesthetic_difference`, how far it is from the content's.  Each is a `report_row`.
    """
    pairs = _pairs(stylized, content)
    sizes = "|".join(sorted({f"{one.shape[-1]}x{one.shape[-2]}" for one, _ in pairs}))
    report: dict[str, dict] = {}

    def add(name: str, values: list[Tensor], **how: str | None) -> None:
        report[name] = report_row(values, **{"resolution": sizes, "seed": seed, **how})

    add("ssim", [ssim(one, other) for one, other in pairs])
    add("psnr", [psnr(one, other) for one, other in pairs])
    if perceptual is not None:
        network = perceptual.name  # a hash of its weights: once
        for name, values in _perceptual_scores(perceptual, pairs).items():
            add(name, values, encoder=network)
        if style is not None:
            add("mean_std", _style_distances(perceptual, pairs, style), encoder=network)
    if prompt is not None and encoder is None:
        logger.warning(
            "A prompt was given and no encoder: no score for the text is taken. Give encoder=pipe.encoder."
        )
    if encoder is not None and prompt is not None:
        side = getattr(encoder, "image_size", None)
        how = {"encoder": encoder.name, "resolution": f"{side}x{side}" if side else sizes}
        for name, values in _text_scores(encoder, pairs, prompt, source_prompt).items():
            add(name, values, resize="the encoder's own", **how)
    if aesthetic is not None:
        side = getattr(aesthetic.encoder, "image_size", None)
        how = {"encoder": aesthetic.name, "resolution": f"{side}x{side}" if side else sizes}
        ratings = [(aesthetic(one), aesthetic(other)) for one, other in pairs]
        add("aesthetic", [own for own, _ in ratings], resize="the encoder's own", **how)
        differences = [(own - of_content).abs() for own, of_content in ratings]
        add("aesthetic_difference", differences, resize="the encoder's own", **how)
    return report


def _pairs(
    stylized: Picture | Sequence[Picture], content: Picture | Sequence[Picture]
) -> list[tuple[Tensor, Tensor]]:
    results, contents = ([picture.rgb for picture in read_images(images)] for images in (stylized, content))
    if len(contents) == 1:
        contents = contents * len(results)
    if len(contents) != len(results):
        raise ValueError(
            f"got {len(results)} stylized pictures and {len(contents)} contents; wanted one, or as many"
        )
    pairs = list(zip(results, contents, strict=True))
    for one, other in pairs:
        if one.shape != other.shape:
            raise ValueError(
                f"got a stylized picture of {one.shape[-1]}x{one.shape[-2]} px and its content of "
                f"{other.shape[-1]}x{other.shape[-2]}; wanted equal sizes: resize one of them first"
            )
    return [(one, other.to(one.device)) for one, other in pairs]


def _perceptual_scores(perceptual, pairs: list[tuple[Tensor, Tensor]]) -> dict[str, list[Tensor]]:
    scores = {"lpips": [], "vgg_normalised": [], "vgg_clipstyler": [], "cfsd": []}
    taps = {
        "vgg_normalised": perceptual.normalised_content_taps,
        "vgg_clipstyler": perceptual.content_taps,
        "cfsd": perceptual.style_taps[2:3],  # relu3_1 of a VGG
    }
    wanted = dict.fromkeys(tap for names in taps.values() for tap in names)
    for pair in pairs:
        pair = [image.to(perceptual.lpips_heads[0].device) for image in pair]
        maps = [perceptual(image, wanted) for image in pair]
        layers = {name: [[m[tap] for tap in names] for m in maps] for name, names in taps.items()}
        scores["lpips"].append(perceptual.lpips(*pair))
        scores["vgg_normalised"].append(content_loss(*layers["vgg_normalised"], variant="normalised"))
        scores["vgg_clipstyler"].append(content_loss(*layers["vgg_clipstyler"], variant="clipstyler"))
        scores["cfsd"].append(cfsd(layers["cfsd"][0][0], layers["cfsd"][1][0]))
    return scores


def _style_distances(
    perceptual, pairs: list[tuple[Tensor, Tensor]], style: Picture | Sequence[Picture]
) -> list[Tensor]:
    def layers(image: Tensor) -> list[Tensor]:
        image = image.to(perceptual.lpips_heads[0].device)
        return list(perceptual(image, perceptual.style_taps).values())

    wanted = [layers(picture.rgb) for picture in read_images(style)]
    return [
        torch.stack([mean_std_loss(own, other) for other in wanted]).mean()
        for own in (layers(one) for one, _ in pairs)
    ]


def _text_scores(
    encoder, pairs: list[tuple[Tensor, Tensor]], prompt: str | Sequence[str], source_prompt: str
) -> dict[str, list[Tensor]]:
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    prompts = prompts * len(pairs) if len(prompts) == 1 else prompts
    if len(prompts) != len(pairs):
        raise ValueError(f"got {len(prompts)} prompts for {len(pairs)} pictures; wanted one, or one for each")
    source = encoder.embed_texts([source_prompt])
    FT = encoder.embed_texts(prompts)
    FY = torch.cat([encoder.embed_images(one.to(FT.device)) for one, _ in pairs])
    FX = torch.cat([encoder.embed_images(other.to(FT.device)) for _, other in pairs])
    cosines = cosine(FY, FT)
    family = getattr(encoder, "family", "siglip")
    scores = {f"{family}_cos": list(cosines), "dir_sim": list(directional_cosine(FY, FX, FT, source))}
    if encoder.logit_scale is not None and encoder.logit_bias is not None:
        scores[f"{family}_prob"] = list(siglip_probability(cosines, encoder.logit_scale, encoder.logit_bias))
    return scores
