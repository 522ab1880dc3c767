"""Every case of `vectors/loss_vectors.json` against the product: float64 numbers computed elsewhere, from the equations.

A case names its inputs as the functions name their arguments.  `HANDLERS` says, by the start of the case's id, how to
get the expected numbers out of the product; a case without a handler fails.
"""

import json
from pathlib import Path

import pytest
import torch

from stylemamba.pipeline import losses, metrics, perceptual, style_aware, style_mixing, temporal

CASES = json.loads((Path(__file__).parent / "vectors" / "loss_vectors.json").read_text())["cases"]


def tensor(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def tensors(inputs):
    """Lists become float64 tensors, numbers stay numbers."""
    return {key: tensor(value) if isinstance(value, list) else value for key, value in inputs.items()}


# Directional terms


def directional(inputs, **options):
    return {"loss": losses.directional_loss(**tensors(inputs), **options)}


def directional_degenerate(inputs):
    named = tensors(inputs)
    FY = named.pop("FY").requires_grad_()
    loss = losses.directional_loss(FY, **named)
    loss.backward()
    return {"loss": loss, "gradient_must_be_finite": bool(FY.grad.isfinite().all())}


def directional_softened(inputs):
    T, delta = tensor(inputs["T"]), inputs["delta"]
    zero = torch.zeros_like(T)

    def loss(shift):
        return losses.directional_loss(shift, zero, T, zero, normalize=False, delta=delta)

    start = zero.clone().requires_grad_()
    loss(start).backward()
    return {
        "loss": [loss(tensor(shift)) for shift in inputs["shifts"]],
        "gradient_norm_at_zero": start.grad.norm(),
    }


def masked(inputs, variant):
    return {"loss": losses.masked_directional_loss(**tensors(inputs), variant=variant)}


def second_order_ratio(inputs):
    shift = losses.alpha_shift(**{key: tensors(inputs)[key] for key in ("FYprev", "FX", "alpha", "beta")})
    return {"alpha_shift": shift, "loss": losses.second_order_loss(**tensors(inputs), variant="ratio")}


def second_order_variants(inputs):
    variants = ("ratio", "elementwise", "aligned")
    named = {v: losses.second_order_loss(**tensors(inputs), variant=v) for v in variants}
    return {"alpha_shift": second_order_ratio(inputs)["alpha_shift"], **named}


def second_order_sequence(inputs):
    named = tensors(inputs)
    features, every = named.pop("features"), named.pop("every")
    found = {}
    for epoch in range(every, len(features), every):
        case = {"FYnew": features[epoch], "FYprev": features[epoch - every], **named}
        values = second_order_variants({key: torch.as_tensor(v).tolist() for key, v in case.items()})
        found[str(epoch)] = {key: values[key] for key in ("alpha_shift", "ratio", "aligned")}
    return found


def style_gate(inputs):
    as_floats = [losses.style_loss(*row, inputs["theta"]) for row in inputs["rows"]]
    as_tensors = losses.style_loss(*tensor(inputs["rows"]).unbind(1), inputs["theta"])
    torch.testing.assert_close(as_tensors, tensor(as_floats))
    return {"loss": as_floats}


def fit_config(inputs):
    from stylemamba.pipeline.prompt_fit import PromptFitConfig

    return PromptFitConfig(
        epochs=inputs["epochs"],
        content_weights=(inputs["content_hi"], inputs["content_lo"]),
        content_switch=inputs["content_switch"],
        lr=inputs["lr"],
        halve_at=inputs["lr_halve_at"],
        second_order_every=inputs["so_every"],
    )


def schedule(inputs):
    config = fit_config(inputs)
    epochs = range(inputs["epochs"])
    steps = config.second_order_epochs()
    return {
        "content_weight": [config.content_weight(epoch) for epoch in epochs],
        "lr": [config.learning_rate(epoch) for epoch in epochs],
        "so_epochs": steps,
        "so_snapshot_of": {str(epoch): config.snapshot_of(epoch) for epoch in steps},
    }


def total(inputs):
    from stylemamba.pipeline.prompt_fit import PromptFitConfig

    epochs = inputs.pop("epochs")
    weights = [PromptFitConfig().content_weight(epoch) for epoch in epochs]
    return {"total": [losses.total_loss(**inputs, w_content=weight) for weight in weights]}


def patch_mask(inputs):
    height, width, patch = inputs["height"], inputs["width"], inputs["patch"]
    keep = losses.patch_mask(**inputs)
    rows, columns = losses.patch_grid(height, width, patch)
    corners = keep[::patch, ::patch].flatten()
    return {"grid": [rows, columns], "masked_patches": (corners == 0).nonzero().flatten(), "keep_mask": keep}


def mask_counts(inputs):
    patch = inputs["patch"]
    grids = [losses.patch_grid(*size, patch) for size in inputs["sizes"]]
    masks = [losses.patch_mask(*size, patch, inputs["ratio"]) for size in inputs["sizes"]]
    return {"n": [r * c for r, c in grids], "masked": [(mask == 0).sum() / patch**2 for mask in masks]}


def patch_threshold(inputs):
    named = tensors(inputs)
    return {
        "per_patch": losses.rejected_patch_losses(**named),
        "loss": losses.patch_directional_loss(**named),
    }


# Feature maps and metrics


def mean_std(inputs):
    mean, std = losses.mean_std(**tensors(inputs))
    return {"mean": mean, "std": std}


def content(inputs, variant):
    return {"loss": losses.content_loss(**tensors(inputs), variant=variant)}


def image_style(inputs):
    presets = losses.IMAGE_STYLE_WEIGHTS
    return {name: losses.image_style_total(**inputs, weights=weights) for name, weights in presets.items()}


def clip_scores(inputs):
    image, text = tensor(inputs["image"]), tensor(inputs["text"])
    cosines = tensor(inputs["cosines_for_p"])
    return {
        "cosine": metrics.cosine(image, text),
        "clipscore": metrics.clipscore(image, text),
        "siglip_p": metrics.siglip_probability(cosines, inputs["scale"], inputs["bias"]),
    }


def ssim(inputs):
    a, b = tensor(inputs["a"]), tensor(inputs["b"])
    return {
        "same": metrics.ssim(a, a),
        "data_range_1": metrics.ssim(a, b),
        "data_range_255_on_unit_images": metrics.ssim(a, b, data_range=255.0),
    }


def cfsd(inputs):
    named = tensors(inputs)
    same = metrics.cfsd(named["stylised"], named["stylised"])
    return {"value": metrics.cfsd(**named), "same": same}


def lpips_head(inputs):
    layers = {key: [tensor(layer) for layer in value] for key, value in inputs.items()}
    return {"value": perceptual.lpips_head(**layers)}


# The scan, its orders, the modulation


def scan(inputs):
    from stylemamba.pipeline.selective_scan import selective_scan

    softplus = "delta_bias" in inputs
    y, state = selective_scan(**tensors(inputs), delta_softplus=softplus, return_last_state=True)
    return {"y": y, "last_state": state}


def scan_mstd(inputs):
    from stylemamba.pipeline.selective_scan import selective_scan

    t = tensors(inputs)

    def run(u, C):
        return selective_scan(t[u], t["delta_style"], t["A"], t["B_style"], t[C], t["D"])

    return {
        "mamba_st": run("u_style", "C_content"),
        "single_stream_style_C": run("u_style", "C_style"),
        "tgstm_u_from_content": run("u_content", "C_content"),
    }


def scan_ssd(inputs):
    """The scalar decay exp(a) is the scan's exp(delta * A) with A = -1 and delta = -a; u is divided by that delta."""
    from stylemamba.pipeline.selective_scan import selective_scan

    t = tensors(inputs)
    x, delta = t["x"].mT[None], -t["a"].expand(1, t["x"].shape[1], -1)  # (1, 3, L)
    A = -torch.ones(x.shape[1], t["B"].shape[1], dtype=x.dtype)
    return {"y": selective_scan(x / delta, delta, A, t["B"].mT[None], t["C"].mT[None])[0].mT}


def scan_order(inputs, kind):
    from stylemamba.pipeline.scan_orders import scan_orders

    orders, inverses = scan_orders(kind, inputs["height"], inputs["width"])
    places = torch.stack([orders // inputs["width"], orders % inputs["width"]])  # (2, K, L)
    steps = places.diff(dim=-1).abs().sum(0)  # (K, L - 1)
    return {"orders": orders, "inverses": inverses, "max_manhattan_step": steps.amax(dim=1)}


def zigzag_figure(inputs):
    orders = scan_order({"height": 4, "width": 4}, "zigzag")["orders"]
    return {"sequences": tensor(inputs["labels_row_major"])[orders]}


def equation_1(inputs):
    from stylemamba.pipeline.adaln import eq1_reading

    named = tensors(inputs)
    eps = named.pop("ln_eps")
    readings = {
        reading: eq1_reading(reading, **named, ssm=lambda v: 2 * v + 1, mlp=lambda v: v**2, eps=eps)
        for reading in "ABCD"
    }
    names = {"A": "A_dit_block", "B": "B_five_parameter", "C": "C_post_modulated", "D": "D_as_printed"}
    return {names[reading]: value for reading, value in readings.items()}


def zero_modulation(inputs):
    from stylemamba.pipeline.adaln import eq1_reading

    zeros = dict.fromkeys(("alpha1", "mu1", "sigma1", "alpha2", "sigma2", "mu2"), 0.0)
    tokens = tensor(inputs["tokens"])
    return {"out": eq1_reading("A", tokens, ssm=lambda v: 2 * v + 1, mlp=lambda v: v**2, eps=1e-6, **zeros)}


def layer_norm(inputs):
    from stylemamba.pipeline.adaln import layer_norm

    return {"out": layer_norm(tensor(inputs["tokens"]))}


def unshuffle(inputs):
    from stylemamba.pipeline.fusion import latent_to_tokens, tokens_to_latent

    latent = tensor(inputs["latent"])
    tokens, (height, width) = latent_to_tokens(latent, inputs["r"])
    assert torch.equal(tokens_to_latent(tokens, inputs["r"], height, width), latent)
    return {"unshuffled": tokens.mT.unflatten(2, (height, width)), "tokens": tokens}


def token_counts(inputs):
    from stylemamba.pipeline.fusion import latent_to_tokens

    def shape(height, width, r):
        tokens, _ = latent_to_tokens(torch.zeros(1, 4, height // 8, width // 8), r)
        return list(tokens.shape[1:])

    return {"tokens": [[shape(*image, r) for r in inputs["r"]] for image in inputs["images"]]}


def zero_embedders(inputs):
    """A SAVSSM whose embedders give 0: SAIN silences the scan in the literal form, a zero out_proj in the other."""
    x = tensor(inputs["x"])
    zero = x.new_zeros(x.shape[1])
    return {
        "literal": style_aware.sain(x, zero, zero) + style_aware.channel_gate(x, zero),
        "required_identity": style_aware.channel_gate(x, zero, unit_gain=True),
    }


# Mixing


def mix(inputs):
    t1, t2, weights = tensor(inputs["t1"]), tensor(inputs["t2"]), inputs["weights"]
    assert torch.equal(style_mixing.mix_directions(t1, t2, weights=(1, 0)), t1)
    return {
        mode: style_mixing.mix_directions(t1, t2, weights=weights, mode=mode) for mode in ("linear", "slerp")
    }


def composite(inputs):
    return {"out": style_mixing.composite(**tensors(inputs))}


def strength(inputs):
    z, M = tensor(inputs["z"]), tensor(inputs["M"])
    return {"out": [style_mixing.interpolate_strength(z, M, strength) for strength in inputs["strengths"]]}


HANDLERS = {
    "stylemamba.dir.": directional,
    "stylemamba.dir.degenerate": directional_degenerate,
    "stylemamba.dir.batch_raw": lambda i: directional(i, normalize=False),
    "stylemamba.dir.softened": directional_softened,
    "stylemamba.md.ratio": lambda i: masked(i, "ratio"),
    "stylemamba.md.directional": lambda i: masked(i, "directional"),
    "stylemamba.md.directional_same_mask": lambda i: masked(i, "same_mask"),
    "stylemamba.alpha_shift.": lambda i: {"value": losses.alpha_shift(**tensors(i))},
    "stylemamba.so.ratio": second_order_ratio,
    "stylemamba.so.all_variants": second_order_variants,
    "stylemamba.so.sequence": second_order_sequence,
    "stylemamba.style.gate": style_gate,
    "stylemamba.schedule": schedule,
    "stylemamba.total": total,
    "stylemamba.mask.": patch_mask,
    "stylemamba.mask.counts": mask_counts,
    "clipstyler.patch_threshold": patch_threshold,
    "clipstyler.tv": lambda i: {"loss": losses.total_variation(**tensors(i))},
    "vgg.mean_std": mean_std,
    "vgg.style_one_layer": lambda i: {"loss": losses.mean_std_loss(**tensors(i))},
    "vgg.content_normalised": lambda i: content(i, "normalised"),
    "vgg.content_plain_mean": lambda i: content(i, "clipstyler"),
    "vgg.content_sse": lambda i: content(i, "sse"),
    "vgg.gram": lambda i: {"gram": losses.gram_matrix(**tensors(i))[0]},
    "imagestyle.total": image_style,
    "samam.lr": lambda i: {"lr": [style_aware.samam_learning_rate(it) for it in i["iterations"]]},
    "metric.clip_scores": clip_scores,
    "metric.ssim": ssim,
    "metric.frechet.": lambda i: {"value": metrics.frechet_distance(**tensors(i))},
    "metric.artfid": lambda i: {"artfid": [metrics.artfid(row[1], row[2]) for row in i["rows"]]},
    "metric.lpips_head": lpips_head,
    "metric.cfsd": cfsd,
    "metric.aesthetic_linear": lambda i: {"score": metrics.aesthetic_linear(**tensors(i))},
    "scan.": scan,
    "scan.mstd": scan_mstd,
    "scan.ssd_duality": scan_ssd,
    "order.zigzag.": lambda i: scan_order(i, "zigzag"),
    "order.zigzag.figure": zigzag_figure,
    "order.cross.": lambda i: scan_order(i, "cross"),
    "adaln.eq1_readings": equation_1,
    "adaln.zero_identity": zero_modulation,
    "adaln.layernorm": layer_norm,
    "tokens.pixel_unshuffle": unshuffle,
    "tokens.counts": token_counts,
    "samam.sain": lambda i: {"y": style_aware.sain(**tensors(i))},
    "samam.scm_zero": lambda i: {"y": style_aware.channel_gate(**tensors(i))},
    "samam.savssm_literal_zero_init": zero_embedders,
    "samam.sconv": lambda i: {"y": style_aware.style_conv(**tensors(i))},
    "temporal.fdb": lambda i: {"loss": temporal.frame_difference_loss(**tensors(i))},
    "temporal.second_order": lambda i: {"loss": temporal.second_order_temporal_loss(**tensors(i))},
    "temporal.warp": lambda i: {"loss": temporal.warp_loss(**tensors(i), flow=tensor([0.0, 1.0]))},
    "multistyle.mix": mix,
    "mask.composite": composite,
    "strength.latent": strength,
}


def assert_matches(got, expected, atol, rtol, where):
    if isinstance(expected, dict):
        assert set(got) == set(expected), where
        for key, value in expected.items():
            assert_matches(got[key], value, atol, rtol, f"{where}.{key}")
    elif isinstance(expected, bool):
        assert got is expected, where
    else:
        if isinstance(got, list):
            got = torch.stack([torch.as_tensor(item, dtype=torch.float64) for item in got])
        got, expected = torch.as_tensor(got, dtype=torch.float64).detach(), tensor(expected)
        torch.testing.assert_close(got, expected, atol=atol, rtol=rtol, msg=lambda text: f"{where}: {text}")


def handler_of(case):
    fitting = [prefix for prefix in HANDLERS if case["id"].startswith(prefix)]
    return HANDLERS[max(fitting, key=len)] if fitting else None


def test_all_seventy_cases_are_here_and_handled():
    assert len(CASES) == 70
    assert [case["id"] for case in CASES if handler_of(case) is None] == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_vector(case):
    got = handler_of(case)(dict(case["inputs"]))
    assert_matches(got, case["expected"], case["atol"], case["rtol"], case["id"])
