"""The fusion module: an identity that can learn, for every preset, reading, fuser and scan order."""

import copy

import pytest
import torch
import torch.nn.functional as F

from stylemamba import StyleFusion, StyleMambaPipeline
from stylemamba.pipeline.fusion import PRESETS, CrossAttentionMixer, latent_to_tokens, tokens_to_latent

READINGS = ("A", "B", "C", "D")
FUSERS = ("mamba", "cross_attention")
ORDERS = ("raster", "bidirectional", "cross", "zigzag")
WIDTH = 12  # of the text embedding
each_reading = pytest.mark.parametrize("reading", READINGS)
each_fuser = pytest.mark.parametrize("fuser", FUSERS)
each_preset = pytest.mark.parametrize("preset", PRESETS)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def prompts(count, width=WIDTH, seed=7):
    return F.normalize(draw(count, width, seed=seed), dim=-1)


def small(seed=0, **options):
    """Two blocks that take the tokens as they are, 16 wide."""
    torch.manual_seed(seed)
    return StyleFusion(**{"cond_dim": WIDTH, "unshuffle": 2, "depth": 2, "d_state": 4, **options})


def preset_fusion(preset, **options):
    torch.manual_seed(0)
    return StyleFusion.from_preset(preset, cond_dim=WIDTH, **options)


def awaken(fusion):
    """Moves every parameter off its initialisation."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.1)
    return fusion


def train(fusion, steps, embeds, optimizer=torch.optim.Adam, lr=5e-4, size=8):
    """Regresses a random latent; returns the losses."""
    latents, target = (draw(len(embeds), 4, size, size, seed=seed) for seed in (0, 1))
    optimizer, losses = optimizer(fusion.parameters(), lr=lr), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.mse_loss(fusion(latents, embeds), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def same_bits(a, b):
    bits = {2: torch.int16, 4: torch.int32}[a.dtype.itemsize]
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(bits), b.contiguous().view(bits))


# Identity at the start (A1, A2)


@each_preset
@each_reading
@each_fuser
def test_a_fresh_fusion_is_the_identity_bit_for_bit(preset, reading, fuser):
    fusion = preset_fusion(preset, reading=reading, fuser=fuser)
    latents = draw(3, 4, 9, 17)
    for embeds in (prompts(3), torch.zeros(3, WIDTH), 1e4 * prompts(3, seed=8)):
        assert same_bits(fusion(latents, embeds), latents)


@pytest.mark.parametrize("scan_order", ORDERS)
@pytest.mark.parametrize("conv", ["causal", "spatial"])
@pytest.mark.parametrize("ssm", ["mamba", "mamba2"])
@each_reading
def test_identity_holds_for_every_scan(scan_order, conv, ssm, reading):
    fusion = small(scan_order=scan_order, conv=conv, ssm=ssm, reading=reading)
    latents = draw(2, 4, 5, 7)
    assert same_bits(fusion(latents, prompts(2)), latents)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@each_preset
@each_fuser
def test_identity_holds_in_half_precision(preset, fuser, dtype):
    fusion = preset_fusion(preset, fuser=fuser).to(dtype)
    latents = draw(2, 4, 9, 17).to(dtype)
    assert same_bits(fusion(latents, prompts(2).to(dtype)), latents)


def test_closed_gates_hide_any_shift_and_scale():
    fusion = small()
    with torch.no_grad():
        for block in fusion.blocks:
            linear = block.ada_ln[1]
            for name, weight, bias in zip(
                block.names, linear.weight.chunk(6), linear.bias.chunk(6), strict=True
            ):
                if not name.startswith("alpha"):
                    weight.normal_()
                    bias.normal_()
    latents = draw(2, 4, 8, 8)
    assert same_bits(fusion(latents, prompts(2)), latents)


# Learning (A3, A6)


VARIANTS = {
    "blocks on the tokens": {},
    "blocks between projections": {"d_model": 24},
    "four spatial paths": {"scan_order": "zigzag", "conv": "spatial"},
    "Mamba-2": {"ssm": "mamba2"},
}


@each_reading
@each_fuser
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_no_parameter_is_dead(reading, fuser, options):
    fusion = small(reading=reading, fuser=fuser, **options)
    before = copy.deepcopy(fusion.state_dict())
    losses = train(fusion, 50, prompts(2))
    unmoved = [name for name, value in fusion.state_dict().items() if torch.equal(value, before[name])]
    assert unmoved == []
    assert losses[-1] < losses[0]


@each_preset
@each_fuser
def test_no_parameter_of_a_preset_is_dead(preset, fuser):
    fusion = preset_fusion(preset, fuser=fuser)
    before = copy.deepcopy(fusion.state_dict())
    train(
        fusion, 6, prompts(1), lr=1e-2, size=16
    )  # several tokens: the first one alone has no state to decay
    assert [name for name, value in fusion.state_dict().items() if torch.equal(value, before[name])] == []


@each_reading
@each_fuser
def test_one_step_is_enough_to_leave_the_identity(reading, fuser):
    fusion = small(reading=reading, fuser=fuser)
    train(fusion, 1, prompts(2), optimizer=torch.optim.SGD, lr=1.0)
    latents = draw(1, 4, 8, 8)
    assert not torch.equal(fusion(latents, prompts(1)), latents)


@each_reading
@each_fuser
def test_after_a_step_prompts_differ_and_the_same_prompt_repeats(reading, fuser):
    fusion = small(reading=reading, fuser=fuser)
    train(fusion, 3, prompts(2), lr=1e-2)
    latents, one, other = draw(1, 4, 8, 8), prompts(1, seed=20), prompts(1, seed=21)
    with torch.no_grad():
        assert torch.equal(fusion(latents, one), fusion(latents, one))
        assert (fusion(latents, one) - fusion(latents, other)).abs().max() > 1e-4


def shifted_latent_losses(text_scale):
    """Methods 1.3: the paper block at SigLIP-base width learns a shifted latent in 20 Adam steps at 5e-4."""
    torch.manual_seed(0)
    fusion = StyleFusion.from_preset("paper")
    for block in fusion.blocks:
        block.ada_ln.register_forward_pre_hook(lambda _, inputs: (inputs[0] * text_scale,))
    latents, embeds = draw(1, 4, 32, 32), prompts(1, 768)
    target = latents.roll(1, dims=-1)
    optimizer, losses = torch.optim.Adam(fusion.parameters(), lr=5e-4), []
    for _ in range(21):
        optimizer.zero_grad()
        loss = F.mse_loss(fusion(latents, embeds), target)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    return losses


def test_twenty_steps_matter_because_the_embedding_is_scaled_by_the_root_of_its_width():
    scaled, unit = shifted_latent_losses(1.0), shifted_latent_losses(768**-0.5)
    assert scaled[0] == unit[0]
    assert scaled[20] < 0.2 * scaled[0]
    assert unit[20] > 0.6 * unit[0]


# Shapes, sizes, precision (A5, A7)


@pytest.mark.parametrize(
    ("options", "millions"),
    [
        ({"preset": "paper", "cond_dim": 768}, 1.750528),
        ({"preset": "paper", "cond_dim": 512}, 1.36),
        ({"preset": "paper", "cond_dim": 1152}, 2.34),
        ({"preset": "wide", "cond_dim": 768}, 17.16),
    ],
    ids=["SigLIP base", "CLIP", "so400m", "wide"],
)
def test_parameter_counts_are_those_of_the_specification(options, millions):
    with torch.device("meta"):
        count = StyleFusion.from_preset(**options).num_parameters()
    digits = len(str(millions).partition(".")[2])
    assert round(count / 1e6, digits) == millions


def test_tokens_are_row_major_and_come_back_exactly():
    latents = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    tokens, grid = latent_to_tokens(latents, 2)
    assert tokens.shape == (2, 6, 12) and grid == (2, 3)
    # token 4 is row 1, column 1 of the grid; the channel comes first, then the place in the 2 x 2 square
    assert torch.equal(tokens[1, 4], latents[1, :, 2:4, 2:4].flatten())
    assert torch.equal(tokens_to_latent(tokens, 2, *grid), latents)


@each_preset
@each_fuser
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (9, 17), (16, 8)], ids=str)
def test_output_has_the_size_of_the_input(preset, fuser, size):
    fusion = awaken(preset_fusion(preset, fuser=fuser, depth=1))
    latents = draw(2, 4, *size)
    fused = fusion(latents, prompts(2))
    assert fused.shape == latents.shape
    assert fused.isfinite().all() and not torch.equal(fused, latents)


@pytest.mark.parametrize("preset", ["tiny", "dense"])
def test_latents_of_sixteen_channels(preset):
    fusion = preset_fusion(preset, latent_channels=16)
    latents = draw(1, 16, 7, 4)
    assert same_bits(fusion(latents, prompts(1)), latents)
    assert awaken(fusion)(latents, prompts(1)).shape == latents.shape


@each_fuser
def test_only_the_direction_of_the_embedding_counts(fuser):
    fusion, latents, embeds = awaken(small(fuser=fuser)), draw(2, 4, 8, 8), prompts(2)
    wanted = fusion(latents, embeds)
    for scale in (1e-3, 700.0):
        torch.testing.assert_close(fusion(latents, scale * embeds), wanted)
    assert (fusion(latents, -embeds) - wanted).abs().max() > 1e-2


@each_reading
@each_fuser
def test_a_batch_is_its_single_pictures(reading, fuser):
    fusion, latents, embeds = awaken(small(reading=reading, fuser=fuser)), draw(3, 4, 6, 8), prompts(3)
    singles = [fusion(latents[i : i + 1], embeds[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(fusion(latents, embeds), torch.cat(singles))


@pytest.mark.parametrize("ssm", ["mamba", "mamba2"])
@each_reading
def test_a_long_sequence_in_pieces_is_the_same(reading, ssm, monkeypatch):
    """Without gradients a causal block takes a sequence piece by piece, each a cache full."""
    fusion, latents, embeds = awaken(small(reading=reading, ssm=ssm)), draw(2, 4, 12, 10), prompts(2)
    wanted = fusion(latents, embeds)  # of 30 tokens
    mixer = fusion.blocks[0].mixer
    monkeypatch.setattr("stylemamba.pipeline.mamba._PIECE", 7 * 4 * mixer.d_inner)
    with torch.no_grad():
        assert mixer.piece(latents) == 7
        torch.testing.assert_close(fusion(latents, embeds), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@each_fuser
def test_half_precision_is_close_to_full(fuser, dtype):
    fusion, latents, embeds = awaken(small(fuser=fuser)), draw(2, 4, 8, 8), prompts(2)
    wanted = fusion(latents, embeds)
    found = copy.deepcopy(fusion).to(dtype)(latents.to(dtype), embeds)
    assert found.dtype == dtype
    error = (found.float() - wanted).square().mean().sqrt() / (wanted - latents).square().mean().sqrt()
    assert error < {torch.float16: 0.01, torch.bfloat16: 0.08}[dtype]


# What mixes with what


def reaches_the_first_token(fusion):
    """Whether the first token sees a change of the last one."""
    latents = draw(1, 4, 8, 8)
    changed = latents.clone()
    changed[..., -2:, -2:] = draw(1, 4, 2, 2, seed=9)
    before, after = (fusion(z, prompts(1))[..., :2, :2] for z in (latents, changed))
    return not torch.equal(before, after)


@pytest.mark.parametrize("scan_order", ORDERS)
def test_only_the_raster_scan_keeps_the_last_token_from_the_first(scan_order):
    fusion = awaken(small(scan_order=scan_order))
    assert reaches_the_first_token(fusion) == (scan_order != "raster")


def test_cross_attention_reaches_every_token():
    assert reaches_the_first_token(awaken(small(fuser="cross_attention")))


@pytest.mark.parametrize(("width", "heads"), [(16, 1), (200, 2), (256, 4), (257, 1)])
def test_cross_attention_has_as_many_heads_as_divide_its_width(width, heads):
    mixer = CrossAttentionMixer(width, WIDTH)
    assert mixer.num_heads == heads
    assert mixer(draw(2, 5, width), prompts(2)).shape == (2, 5, width)


def test_cross_attention_reads_the_text_besides_the_modulation():
    fusion = awaken(small(fuser="cross_attention"))
    with torch.no_grad():
        for block in fusion.blocks:
            block.ada_ln[
                1
            ].weight.zero_()  # the gates stay open through the bias, the text enters by attention alone
    latents = draw(1, 4, 8, 8)
    one, other = (fusion(latents, prompts(1, seed=seed)) for seed in (1, 2))
    assert (one - other).abs().max() > 1e-3


def test_fusers_have_the_same_width():
    mamba, attention = (preset_fusion("paper", fuser=fuser) for fuser in FUSERS)
    assert mamba.blocks[0].mixer.in_proj.in_features == attention.blocks[0].mixer.to_q.in_features == 256


# Saving


@pytest.mark.parametrize(
    "options",
    [
        {"reading": "B"},
        {"fuser": "cross_attention"},
        {"scan_order": "zigzag", "conv": "spatial", "d_model": 24, "ssm": "mamba2"},
    ],
    ids=str,
)
def test_saved_and_loaded_weights_are_equal_bit_for_bit(tmp_path, options):
    fusion = awaken(small(**options))
    fusion.save_pretrained(tmp_path)
    loaded = StyleFusion.from_pretrained(tmp_path)
    assert {k: v for k, v in loaded.config.items() if k in options} == options
    state = loaded.state_dict()
    assert state.keys() == fusion.state_dict().keys()
    assert all(same_bits(state[name], value) for name, value in fusion.state_dict().items())
    latents = draw(1, 4, 8, 8)
    # copied, since the alignment of a mapped file may change how a matrix product is rounded
    assert same_bits(copy.deepcopy(loaded)(latents, prompts(1)), fusion(latents, prompts(1)))


def in_float32(fusion):
    return {name for name, p in fusion.named_parameters() if p.dtype == torch.float32}


def test_half_precision_leaves_the_parameters_of_the_scan_in_float32(tmp_path):
    fusion = awaken(small())
    fusion.save_pretrained(tmp_path)
    wanted = {f"blocks.{i}.mixer.{name}" for i in (0, 1) for name in ("A_log", "D", "dt_bias")}
    loaded = StyleFusion.from_pretrained(tmp_path, torch_dtype=torch.float16)
    assert in_float32(loaded) == wanted
    assert in_float32(copy.deepcopy(fusion).to(torch.float16)) == wanted
    for name in wanted:
        assert same_bits(loaded.get_parameter(name).detach(), fusion.get_parameter(name).detach())


def test_from_config_makes_a_fresh_identity_of_the_same_shapes():
    fusion = awaken(small(reading="C", d_model=24))
    fresh = StyleFusion.from_config(fusion.config)
    shapes = [{name: p.shape for name, p in model.named_parameters()} for model in (fusion, fresh)]
    assert shapes[0] == shapes[1]
    latents = draw(1, 4, 8, 8)
    assert same_bits(fresh(latents, prompts(1)), latents)


# Hosts


def test_training_works_after_a_first_use_under_inference_mode():
    """ComfyUI runs every node so; nothing made there may stay behind in a cache."""
    fusion = small(scan_order="cross")
    latents = draw(1, 4, 6, 10)
    with torch.inference_mode():
        fusion(latents, prompts(1))
    fusion(latents, prompts(1)).square().mean().backward()
    assert fusion.blocks[0].ada_ln[1].weight.grad.abs().max() > 0


# Mistakes


@pytest.mark.parametrize(
    ("latents", "embeds", "sentence"),
    [
        ((1, 16, 8, 8), (1, WIDTH), r"latents have shape \(1, 16, 8, 8\), wanted \(B, 4, h, w\)"),
        ((4, 8, 8), (1, WIDTH), r"latents have shape \(4, 8, 8\), wanted \(B, 4, h, w\)"),
        ((1, 4, 8, 8), (1, 768), r"prompt_embeds have shape \(1, 768\), wanted \(1, 12\)"),
        ((2, 4, 8, 8), (1, WIDTH), r"prompt_embeds have shape \(1, 12\), wanted \(2, 12\)"),
        ((1, 4, 8, 8), (WIDTH,), r"prompt_embeds have shape \(12,\), wanted \(1, 12\)"),
    ],
    ids=["channels", "no batch", "width", "count", "no batch of prompts"],
)
def test_wrong_shapes_are_named_with_the_wanted_ones(latents, embeds, sentence):
    with pytest.raises(ValueError, match=sentence):
        small()(torch.zeros(latents), torch.zeros(embeds))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"reading": "E"}, "reading is 'E', wanted one of A, B, C, D"),
        ({"fuser": "mlp"}, "fuser is 'mlp', wanted 'mamba' or 'cross_attention'"),
        ({"scan_order": "spiral"}, "scan order 'spiral' is unknown"),
        ({"ssm": "mamba3"}, "ssm is 'mamba3', wanted 'mamba' or 'mamba2'"),
        ({"conv": "none"}, "conv is 'none', wanted 'causal' or 'spatial'"),
        ({"depth": 0}, "depth is 0, wanted a whole number from 1 on"),
        ({"unshuffle": -8}, "unshuffle is -8, wanted a whole number from 1 on"),
        ({"d_model": 0}, "d_model is 0, wanted a whole number from 1 on"),
        ({"cond_dim": 12.0}, "cond_dim is 12.0, wanted a whole number from 1 on"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named_with_the_wanted_ones(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        small(**options)


def test_an_unknown_preset_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="preset is 'huge', wanted one of paper, wide, dense, tiny"):
        StyleFusion.from_preset("huge")


# Warm-up


@pytest.mark.parametrize("unshuffle", [1, 2])
def test_every_block_is_warmed_up_and_a_fresh_fusion_stays_the_identity(unshuffle):
    warm, z = small(unshuffle=unshuffle, depth=2, warm_up=64), draw(2, 4, 5, 7)
    assert [block.mixer.warm_up for block in warm.blocks] == [64, 64]
    assert same_bits(warm(z, prompts(2)), z)
    plain = awaken(small(unshuffle=unshuffle, depth=2))
    warm.load_state_dict(plain.state_dict())
    difference = (warm(z, prompts(2)) - plain(z, prompts(2))).abs()
    assert difference[:, :, :2].max() > 1e-4


@pytest.mark.parametrize("wrong", [-1, 1.5, True, "4"])
def test_a_warm_up_is_a_number_of_tokens(wrong):
    with pytest.raises(ValueError, match="warm_up is .*, wanted a whole number from 0 on"):
        small(warm_up=wrong)


def test_the_bundled_fusion_paints_the_first_and_last_rows_as_the_rest():
    """Without a warm-up, the ends of a picture without any ends are of another colour."""
    pipe = StyleMambaPipeline.from_pretrained("tiny")
    even = F.interpolate(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)), size=512)
    bare = StyleFusion(**{**pipe.fusion.config, "warm_up": 0})
    bare.load_state_dict(pipe.fusion.state_dict())

    def band(fusion) -> float:
        pipe.fusion = fusion
        colours = []
        for prompt in ("ukiyo-e woodblock print", "in the style of van Gogh", "stained glass window"):
            picture = pipe(even / 2 + 0.25, prompt, output_type="pt").images[0]
            middle = picture[:, 64:-64].mean((1, 2))
            colours += [picture[:, :12].mean((1, 2)) - middle, picture[:, -12:].mean((1, 2)) - middle]
        return float(torch.stack(colours).abs().mean())

    warm = band(pipe.fusion)
    assert warm < 0.5 * band(bare)
