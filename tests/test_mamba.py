"""The mixer against Mamba written out step by step, path by path, and what its parameters must and must not do."""

import math

import pytest
import torch
import torch.nn.functional as F

from stylemamba.pipeline import mamba as mamba_module
from stylemamba.pipeline.fusion import StyleFusion
from stylemamba.pipeline.mamba import Linear, MambaMixer
from stylemamba.pipeline.scan_orders import scan_orders
from stylemamba.pipeline.selective_scan import selective_scan_ref

KINDS = {"raster": 1, "bidirectional": 2, "cross": 4, "zigzag": 4}
each_kind = pytest.mark.parametrize("scan_order", KINDS)
each_conv = pytest.mark.parametrize("conv", ["causal", "spatial"])
each_ssm = pytest.mark.parametrize("ssm", ["mamba", "mamba2"])


def mixer(d_model=8, seed=0, **options):
    torch.manual_seed(seed)
    return MambaMixer(d_model, d_state=4, **options)


def written_out(m, x, height, width):
    """The mixer one path, and in the causal convolution one token, at a time."""
    orders, inverses = scan_orders(m.scan_order, height, width)
    x, z = (x @ m.in_proj.weight.T).chunk(2, -1)  # (B, L, D)
    total = 0
    for k in range(len(orders)):
        if m.conv.weight.dim() == 3:
            path = x[:, orders[k]]
            kernel = m.conv.weight[:, 0].T  # (d_conv, D), oldest token first
            taps = len(kernel)
            padded = torch.cat([torch.zeros_like(path[:, :1]).repeat(1, taps - 1, 1), path], 1)
            u = torch.stack(
                [(padded[:, t : t + taps] * kernel).sum(1) + m.conv.bias for t in range(height * width)], 1
            )
        else:
            image = x.transpose(1, 2).reshape(len(x), -1, height, width)
            image = F.pad(image, (1, 1, 1, 1), mode="replicate")
            image = F.conv2d(image, m.conv.weight, m.conv.bias, groups=m.d_inner)
            u = image.flatten(2).transpose(1, 2)[:, orders[k]]
        u = u * torch.sigmoid(u)  # (B, L, D)
        if m.ssm == "mamba":
            dt, B, C = (u @ m.x_proj[k].T).split([m.dt_rank, m.d_state, m.d_state], -1)
            delta = torch.log1p(torch.exp(dt @ m.dt_proj[k].T + m.dt_bias[k]))
            A, D = -m.A_log[k].exp(), m.D[k]
        else:  # each head has one delta, A and D for all of its channels
            dt, B, C = (u @ m.x_proj[k].T).split([m.heads, m.d_state, m.d_state], -1)
            spread = lambda x: x.repeat_interleave(m.d_inner // m.heads, -1)  # noqa: E731
            delta = spread(torch.log1p(torch.exp(dt + m.dt_bias[k])))
            A, D = spread(-m.A_log[k].exp())[:, None].expand(-1, m.d_state), spread(m.D[k])
        # Between two mirrors at the ends of the path; of tokens far before the first every eighth, for as long as eight.
        there_and_back = [*range(height * width), *reversed(range(height * width))]
        near, far = range(min(m.warm_up, 64)), range(68, 64 + (m.warm_up - 64) // 8 * 8, 8)
        read = [there_and_back[d % len(there_and_back)] for d in reversed([*near, *far])]
        longer = torch.tensor([8.0] * len(far) + [1.0] * (len(near) + height * width))
        read += range(height * width)
        u, B, C, delta = u[:, read], B[:, read], C[:, read], delta[:, read] * longer.to(x)[:, None]
        y = selective_scan_ref(u.mT, delta.mT, A, B.mT, C.mT, D)[..., len(near) + len(far) :]  # (B, D, L)
        total = total + y.mT[:, inverses[k]]
    return (total * z * torch.sigmoid(z)) @ m.out_proj.weight.T


@each_kind
@each_conv
@each_ssm
@pytest.mark.parametrize("warm_up", [0, 8, 199])
def test_equals_mamba_written_out(scan_order, conv, ssm, warm_up):
    m = mixer(scan_order=scan_order, conv=conv, ssm=ssm, warm_up=warm_up).double()
    x = torch.randn(2, 15, 8, dtype=torch.float64)
    torch.testing.assert_close(m(x, 3, 5), written_out(m, x, 3, 5))


@each_kind
@each_conv
@each_ssm
@pytest.mark.parametrize("d_model", [8, 50])
@pytest.mark.parametrize("warm_up", [0, 200])
def test_without_gradients_it_is_the_same(scan_order, conv, ssm, d_model, warm_up):
    """That way has matrix products, scans and in-place operations of its own, and leaves its input alone."""
    m = mixer(d_model, scan_order=scan_order, conv=conv, ssm=ssm, warm_up=warm_up)
    x = torch.randn(2, 77, d_model)
    before = x.clone()
    wanted = m(x, 7, 11)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            torch.testing.assert_close(m(x, 7, 11), wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(x, before)


@each_ssm
def test_a_long_path_goes_through_in_pieces(ssm):
    """The state and the last tokens of a piece are all that the next one needs of it, also where it is short."""
    m = mixer(50, ssm=ssm)
    x = torch.randn(2, 77, 50)
    wanted = m(x, 7, 11)
    with torch.no_grad():
        mix = m.stream()
        pieces = torch.cat([mix(piece) for piece in x.split(25, 1)], 1)
        torch.testing.assert_close(pieces, wanted, rtol=1e-4, atol=1e-5)
        mix = m.half().stream()
        half = torch.cat([mix(piece) for piece in x.half().split(25, 1)], 1)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), wanted, rtol=2e-2, atol=2e-2)


@each_kind
@each_ssm
def test_a_warm_up_leaves_no_end_of_an_even_picture_different(scan_order, ssm):
    """A state that has read the same for long is nearly the one that it always will have: steps eight times as long are coarser."""
    x = torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(1)).expand(1, 400, 8)
    for warm_up, least, most in ((0, 0.8, 2), (20000, 0, 0.08)):
        m = mixer(scan_order=scan_order, conv="spatial", ssm=ssm, warm_up=warm_up)
        torch.nn.init.zeros_(m.D)  # of the state alone
        with torch.no_grad():
            y = m(x, 20, 20)
        assert least <= (y - y[:, 200:201]).abs().max() / y.abs().max() <= most


@each_ssm
def test_a_warm_up_learns(ssm):
    """What is read before the first token reaches its result, and half precision and long paths in pieces leave that alone."""
    m = mixer(50, ssm=ssm, warm_up=256)
    x = torch.randn(1, 77, 50, requires_grad=True)
    y = m(x, 7, 11)
    y[:, 0].square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in m.parameters())
    assert x.grad[0, 60].abs().max() > 0  # read as token 60 + 77 + 77 before the first, by two mirrors
    with torch.no_grad():
        assert m.piece(x) == 77
        torch.testing.assert_close(m.half()(x.half(), 7, 11).float(), y, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_torchs(bias):
    torch.manual_seed(0)
    layer, x = (
        Linear(24, 40, bias=bias),
        torch.randn(2, 9, 50)[..., 3:27],
    )  # strided, as a slice of wider rows
    wanted = x @ layer.weight.T + (layer.bias if bias else 0)
    torch.testing.assert_close(layer(x), wanted)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), wanted)
        torch.testing.assert_close(layer(x[:, :0]), wanted[:, :0])
        torch.testing.assert_close(layer.double()(x.double()), wanted.double(), rtol=1e-5, atol=1e-5)
        assert layer.to(torch.bfloat16)(x.to(torch.bfloat16)).dtype == torch.bfloat16
        assert layer.to("meta")(x.to("meta")).shape == wanted.shape


def test_linear_without_onednn(monkeypatch):
    layer, x = Linear(8, 5), torch.randn(3, 8)
    monkeypatch.setattr(mamba_module, "_onednn_linear", lambda: None)
    with torch.no_grad():
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_linear_leaves_autocast_and_tensors_of_other_classes_alone():
    class Counting(torch.Tensor):
        calls = 0

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            cls.calls += func is F.linear
            return super().__torch_function__(func, types, args, kwargs or {})

    layer, x = Linear(8, 5), torch.randn(3, 8)
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        layer(x.as_subclass(Counting))
    assert Counting.calls == 1


def test_parameters_of_plain_mamba():
    shapes = {name: tuple(p.shape) for name, p in MambaMixer(256).named_parameters()}
    assert shapes == {
        "in_proj.weight": (1024, 256),
        "conv.weight": (512, 1, 4),
        "conv.bias": (512,),
        "x_proj": (1, 48, 512),
        "dt_proj": (1, 512, 16),
        "dt_bias": (1, 512),
        "A_log": (1, 512, 16),
        "D": (1, 512),
        "out_proj.weight": (256, 512),
    }


def test_parameters_of_mamba2():
    shapes = {name: tuple(p.shape) for name, p in MambaMixer(256, ssm="mamba2").named_parameters()}
    assert shapes == {
        "in_proj.weight": (1024, 256),
        "conv.weight": (512, 1, 4),
        "conv.bias": (512,),
        "x_proj": (1, 8 + 2 * 16, 512),
        "dt_bias": (1, 8),
        "A_log": (1, 8),
        "D": (1, 8),
        "out_proj.weight": (256, 512),
    }


@pytest.mark.parametrize(("d_model", "heads"), [(5, 1), (32, 1), (48, 3), (64, 2), (100, 25)])
def test_heads_of_mamba2_are_as_wide_as_64_channels_or_the_next_divisor(d_model, heads):
    assert MambaMixer(d_model, ssm="mamba2").heads == heads


@each_kind
def test_one_set_of_scan_parameters_per_path(scan_order):
    m = mixer(scan_order=scan_order)
    for name in ("x_proj", "dt_proj", "dt_bias", "A_log", "D"):
        assert len(getattr(m, name)) == KINDS[scan_order]


def test_initialisation():
    torch.manual_seed(0)
    m = MambaMixer(64, scan_order="cross")
    assert m.dt_rank == 4
    assert MambaMixer(65).dt_rank == 5
    torch.testing.assert_close(m.A_log.exp(), torch.arange(1.0, 17).expand(4, 128, 16))
    assert torch.equal(m.D, torch.ones(4, 128))
    assert m.dt_proj.abs().max() <= 4**-0.5
    assert m.dt_proj.std().item() == pytest.approx(4**-0.5 / math.sqrt(3), rel=0.1)
    dt = F.softplus(m.dt_bias)
    assert 1e-3 * 0.999 <= dt.min() < 1.2e-3
    assert 0.08 < dt.max() <= 0.1001
    assert dt.log().mean().item() == pytest.approx((math.log(1e-3) + math.log(1e-1)) / 2, abs=0.2)
    assert not torch.equal(m.x_proj[0], m.x_proj[1])


def test_initialisation_repeats_with_the_seed():
    first, second = mixer(seed=3).state_dict(), mixer(seed=3).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@each_kind
@each_conv
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (5, 1), (4, 3)])
def test_any_grid(scan_order, conv, height, width):
    y = mixer(scan_order=scan_order, conv=conv)(torch.randn(2, height * width, 8), height, width)
    assert y.shape == (2, height * width, 8)
    assert y.isfinite().all()


def test_raster_is_causal_and_bidirectional_is_not():
    x = torch.randn(1, 12, 8)
    changed = x.clone()
    changed[:, 7] += 1
    plain, both = mixer(), mixer(scan_order="bidirectional")
    assert torch.equal(plain(x, 3, 4)[:, :7], plain(changed, 3, 4)[:, :7])
    assert not torch.isclose(both(x, 3, 4)[:, 0], both(changed, 3, 4)[:, 0]).all()


@each_ssm
def test_a_flat_picture_gets_no_frame(ssm):
    """Along the border the spatial convolution meets what is within, so with no memory all tokens stay alike."""
    m = mixer(conv="spatial", ssm=ssm)
    m.x_proj.data[:, -m.d_state :] = 0  # nothing is read from the state
    tokens = m(torch.randn(1, 1, 8).expand(1, 30, 8), 5, 6)
    torch.testing.assert_close(tokens, tokens[:, :1].expand_as(tokens))


def test_paths_that_only_pass_on_add_up_in_place():
    """With nothing read from the state and D = 1, each of four paths returns what the single one does."""
    one, four = mixer(conv="spatial"), mixer(conv="spatial", scan_order="zigzag")
    shared = {name: value for name, value in one.state_dict().items() if "." in name}
    four.load_state_dict(shared, strict=False)
    for m in (one, four):
        m.x_proj.data[:, m.dt_rank + m.d_state :] = 0
    x = torch.randn(2, 12, 8)
    torch.testing.assert_close(four(x, 3, 4), 4 * one(x, 3, 4))


@each_kind
@each_conv
@each_ssm
def test_every_parameter_learns(scan_order, conv, ssm):
    m = mixer(scan_order=scan_order, conv=conv, ssm=ssm)
    m(torch.randn(2, 12, 8), 3, 4).square().sum().backward()
    for name, p in m.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        assert (p.grad != 0).any(), name


@each_ssm
def test_gradcheck(ssm):
    m = mixer(d_model=4, scan_order="zigzag", conv="spatial", ssm=ssm).double()
    x = torch.randn(1, 6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: m(x, 2, 3), [x])


@each_ssm
def test_batch_equals_its_samples(ssm):
    m = mixer(scan_order="cross", ssm=ssm)
    x = torch.randn(3, 12, 8)
    torch.testing.assert_close(m(x, 3, 4), torch.cat([m(x[i : i + 1], 3, 4) for i in range(3)]))


@each_conv
@each_ssm
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(conv, dtype, ssm):
    m = mixer(scan_order="zigzag", conv=conv, ssm=ssm)
    x = torch.randn(2, 12, 8)
    wanted = m(x, 3, 4)
    m.to(dtype)
    y = m(x.to(dtype), 3, 4)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), wanted, rtol=0.1, atol=0.02 * wanted.abs().max().item())
    y.sum().backward()
    assert all(p.grad.dtype == p.dtype and p.grad.isfinite().all() for p in m.parameters())


@each_ssm
def test_what_must_stay_in_float32_does(ssm):
    m = mixer(ssm=ssm)
    before = {name: getattr(m, name).detach().clone() for name in MambaMixer._keep_in_fp32}
    m.half()
    assert {name for name, p in m.named_parameters() if p.dtype == torch.float32} == {"A_log", "D", "dt_bias"}
    assert all(torch.equal(getattr(m, name), value) for name, value in before.items())
    assert {p.dtype for p in m.double().parameters()} == {torch.float64}
    assert {p.device.type for p in m.half().to("meta").parameters()} == {"meta"}


def test_autocast():
    m = mixer(scan_order="cross")
    x = torch.randn(2, 12, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = m(x, 3, 4)
    wanted = m(x, 3, 4)
    torch.testing.assert_close(y.float(), wanted, rtol=0.1, atol=0.03 * wanted.abs().max().item())


def test_training_after_inference_mode():
    m = mixer(scan_order="zigzag")
    x = torch.randn(1, 35, 8)
    with torch.inference_mode():
        m(x, 5, 7)
    m(x, 5, 7).sum().backward()


def test_made_on_the_meta_device():
    with torch.device("meta"):
        m = MambaMixer(8, scan_order="cross")
    assert {p.device.type for p in m.parameters()} == {"meta"}
    m.to_empty(device="cpu").load_state_dict(MambaMixer(8, scan_order="cross").state_dict())
    assert m(torch.randn(1, 12, 8), 3, 4).isfinite().all()


@each_conv
@each_ssm
def test_sequential_offload(conv, ssm):
    accelerate = pytest.importorskip("accelerate")
    m = mixer(scan_order="zigzag", conv=conv, ssm=ssm)
    x = torch.randn(2, 12, 8)
    wanted = m(x, 3, 4)
    accelerate.cpu_offload(m, execution_device=torch.device("cpu"), offload_buffers=True)
    assert m.A_log.device.type == "meta"
    torch.testing.assert_close(m(x, 3, 4), wanted)
    assert m.A_log.device.type == "meta"


def test_state_dict_round_trip():
    first, second = mixer(seed=0, scan_order="cross"), mixer(seed=1, scan_order="cross")
    second.load_state_dict(first.state_dict())
    x = torch.randn(1, 12, 8)
    assert torch.equal(first(x, 3, 4), second(x, 3, 4))


@pytest.mark.parametrize("shape", [(1, 12), (1, 11, 8), (1, 12, 9)])
def test_input_that_does_not_fit(shape):
    with pytest.raises(
        ValueError, match=r"wanted \(B, height \* width, d_model\) = \(B, 12, 8\); pass the size of"
    ):
        mixer()(torch.randn(shape), 3, 4)


def test_mamba2_starts_with_the_decays_of_its_paper():
    torch.manual_seed(0)
    m = MambaMixer(2048, scan_order="cross", ssm="mamba2")  # 4 x 64 heads
    assert 1 <= m.A_log.exp().min() < 2 and 15 < m.A_log.exp().max() <= 16
    assert 1e-3 * 0.999 <= F.softplus(m.dt_bias).min() and F.softplus(m.dt_bias).max() <= 0.1001
    assert torch.equal(m.D, torch.ones(4, 64))


# The same inside the fusion


def fusion(**options):
    torch.manual_seed(0)
    return StyleFusion.from_preset(
        "tiny", **{"latent_channels": 4, "cond_dim": 12, "ssm": "mamba2", **options}
    )


@pytest.mark.parametrize("preset", [{}, {"d_model": 16}, {"scan_order": "zigzag", "conv": "spatial"}])
def test_a_fresh_fusion_of_mamba2_is_the_identity_bit_for_bit(preset):
    latents, embeds = torch.randn(2, 4, 10, 7), torch.randn(2, 12)
    assert torch.equal(fusion(**preset)(latents, embeds), latents)


def test_every_parameter_of_a_fusion_of_mamba2_moves():
    m = fusion(scan_order="zigzag", conv="spatial")
    before = {name: p.detach().clone() for name, p in m.named_parameters()}
    optimizer = torch.optim.Adam(m.parameters(), 1e-3)
    latents, embeds, target = torch.randn(2, 4, 8, 8), torch.randn(2, 12), torch.randn(2, 4, 8, 8)
    for step in range(10):
        optimizer.zero_grad()
        (m(latents, embeds) - target).square().mean().backward()
        optimizer.step()
        if step == 0:
            assert not torch.equal(m(latents, embeds), latents)
    unmoved = [name for name, p in m.named_parameters() if torch.equal(p, before[name])]
    assert unmoved == []


def test_a_fusion_of_mamba2_survives_a_round_trip_to_disk(tmp_path):
    m = fusion()
    for p in m.parameters():
        torch.nn.init.normal_(p, std=0.1)
    m.save_pretrained(tmp_path)
    loaded = StyleFusion.from_pretrained(tmp_path)
    assert loaded.config.ssm == "mamba2"
    latents, embeds = torch.randn(1, 4, 8, 8), torch.randn(1, 12)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), m.parameters(), strict=True))
    torch.testing.assert_close(loaded(latents, embeds), m(latents, embeds))


def test_unknown_conv_order_and_ssm():
    with pytest.raises(ValueError, match="ssm is 's4', wanted 'mamba' or 'mamba2'"):
        mixer(ssm="s4")
    with pytest.raises(ValueError, match="conv is 'same', wanted 'causal' or 'spatial'"):
        mixer(conv="same")
    with pytest.raises(ValueError, match="scan order 'spiral' is unknown"):
        mixer(scan_order="spiral")
