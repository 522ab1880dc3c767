"""Mamba-ST: what it begins as, which stream feeds which part of the scan, and the shuffle of style tokens."""

import pytest
import torch
import torch.nn.functional as F

from stylemamba import MambaST
from stylemamba.pipeline.mamba_st import MambaSTBlock, StyleReadingMixer
from stylemamba.pipeline.scan_orders import scan_orders
from stylemamba.pipeline.selective_scan import selective_scan_ref

STYLED = {
    "decoder": {"latent_channels": 4, "cond_dim": 6, "code_dim": 8, "channels": [12, 8, 6], "depth": 1},
    "tower": {"projection_size": 6, "channels": [4, 4, 4, 4, 4], "hidden_size": 8, "image_size": 32},
}


def tiny(seed=0, **options):
    torch.manual_seed(seed)
    defaults = {
        "embed_dim": 8,
        "patch_size": 4,
        "encoder_depth": 1,
        "depth": 2,
        "d_state": 3,
        "decoder_width": 16,
    }
    return MambaST(**{**defaults, **options}).eval()


def awake(model, seed=1):
    """A model that does something: the identity it starts as would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def mixer(seed=0, compat=False):
    torch.manual_seed(seed)
    return StyleReadingMixer(8, d_state=3, expand=2, scan_order="cross", reads_style=True, compat=compat)


def pictures(count, height, width, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class TestStart:
    def test_a_new_block_is_the_identity_for_every_style(self):
        x = torch.randn(2, 8, 4, 5)
        new = MambaSTBlock(8, 3, 2, "cross", reads_style=True, compat=False)
        assert torch.equal(new(x, torch.randn(2, 8, 4, 5)), x)

    @pytest.mark.parametrize("compat", [False, True])
    def test_only_with_compat_is_the_border_seen_in_an_even_picture(self, compat):
        even = torch.randn(1, 16, 1, 1).expand(1, 16, 6, 5)
        result = mixer(compat=compat).conv(even)
        assert torch.allclose(result, result[..., 2:3, 2:3].expand_as(result), atol=1e-5) != compat

    def test_a_new_model_passes_on_the_patches_of_the_content(self):
        model, content = tiny(), pictures(2, 32, 24)
        features = model.encode_content(content)
        assert torch.equal(features, model.patch_embed(content * 2 - 1))
        assert torch.equal(model.fuse(features, model.encode_style(pictures(2, 40, 40, 1))), features)

    @pytest.mark.parametrize("styled_decoder", [None, STYLED])
    def test_every_parameter_learns(self, styled_decoder):
        model = tiny(styled_decoder=styled_decoder).train()
        content, style, wanted = pictures(2, 16, 16), pictures(2, 16, 16, 1), pictures(2, 16, 16, 2)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(120):
            optimizer.zero_grad()
            F.mse_loss(model(content, style), wanted).backward()
            optimizer.step()
        still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
        # the tower's feature maps are given
        assert [name for name in still if not name.startswith("style_tower.features.")] == []

    @pytest.mark.parametrize("compat", [True, False])
    def test_t5_decay_is_mambas_after_construction(self, compat):
        model = tiny(d_state=16, compat=compat)
        decays = [-p.exp() for name, p in model.named_parameters() if name.endswith("A_log")]
        assert len(decays) == 4
        for A in decays:
            torch.testing.assert_close(A, -torch.arange(1.0, 17).expand(4, 16, 16))
        biases = [p for name, p in model.named_parameters() if name.endswith("dt_bias")]
        assert all(((F.softplus(p) > 0.99e-3) & (F.softplus(p) < 0.101)).all() for p in biases)

    def test_t6_parameter_count(self):
        with torch.device("meta"):
            compat, ours = MambaST(compat=True), MambaST()
        assert sum(p.numel() for p in compat.parameters()) == 27_082_819
        # What the public code has and never uses: a projection in each of six encoder blocks, a second scale in all
        # nine blocks, and a convolution for position embeddings.
        unused = 6 * 512 * 1024 + 9 * 512 + 512 * 512 + 512
        assert sum(p.numel() for p in ours.parameters()) == 27_082_819 - unused


class TestStreams:
    def test_t1_a_picture_as_its_own_style_is_the_block_without_style(self):
        m, x = mixer(), torch.randn(2, 8, 4, 5)
        with torch.no_grad():
            m.style_proj.weight.copy_(m.in_proj.weight[:16])
        torch.testing.assert_close(m(x, x), m(x))

    def test_t2_the_scan_written_out(self):
        """u, Delta and B are made of the style, C and z of the content, and D passes the style on."""
        m = mixer().double()
        content, style = torch.randn(2, 2, 8, 3, 4, dtype=torch.float64)
        x, z = F.conv2d(content, m.in_proj.weight[:, :, None, None]).chunk(2, 1)
        u = F.silu(m.conv(F.conv2d(style, m.style_proj.weight[:, :, None, None]))).flatten(2)
        x, total = F.silu(m.conv(x)).flatten(2), 0
        for k, (order, inverse) in enumerate(zip(*scan_orders("cross", 3, 4), strict=True)):
            s = m.scan
            dt, B, _ = torch.einsum("cd,bdl->bcl", s.x_proj[k], u[..., order]).split((s.dt_rank, 3, 3), 1)
            _, _, C = torch.einsum("cd,bdl->bcl", s.x_proj[k], x[..., order]).split((s.dt_rank, 3, 3), 1)
            delta = F.softplus(torch.einsum("dr,brl->bdl", s.dt_proj[k], dt) + s.dt_bias[k][:, None])
            total = (
                total
                + selective_scan_ref(u[..., order], delta, -s.A_log[k].exp(), B, C, s.D[k])[..., inverse]
            )
        y = m.norm(total.mT).mT * F.silu(z.flatten(2))
        wanted = torch.einsum("cd,bdl->bcl", m.out_proj.weight, y).view_as(content)
        torch.testing.assert_close(m(content, style), wanted)

    def test_t4_content_acts_through_c_and_z_alone(self):
        m, style = mixer(), torch.randn(1, 8, 4, 5)
        one, other = torch.randn(2, 1, 8, 4, 5)
        assert not torch.allclose(m(one, style), m(other, style), atol=1e-4)
        with torch.no_grad():
            m.scan.x_proj[:, -3:] = 0  # C
            gate = m.in_proj.weight[16:].clone()
            m.in_proj.weight[16:] = 0  # z: SiLU(0) is 0, so that nothing passes
            assert not m(one, style).any()
            m.in_proj.weight[16:] = gate
        y_one, y_other = (m.scan(style.repeat(1, 2, 1, 1), reader=c.repeat(1, 2, 1, 1)) for c in (one, other))
        assert torch.equal(y_one, y_other)

    def test_the_style_may_have_any_grid(self):
        model = awake(tiny())
        content = pictures(1, 24, 32)
        for size in ((24, 32), (16, 16), (60, 45)):
            assert model(content, pictures(1, *size, 1)).shape == content.shape

    def test_a_batch_of_styles_equals_single_runs(self):
        model = awake(tiny())
        content, style = pictures(3, 24, 20), pictures(3, 32, 40, 1)
        with torch.no_grad():
            single = [model(content[i : i + 1], style[i : i + 1]) for i in range(3)]
            torch.testing.assert_close(model(content, style), torch.cat(single))
        assert not torch.allclose(single[0], model(content[:1], style[1:2]), atol=1e-4)

    @pytest.mark.parametrize("patch_size", [4, 8])
    @pytest.mark.parametrize("size", [(16, 16), (48, 72), (17, 91)])
    def test_t7_rectangular_pictures(self, patch_size, size):
        model = awake(tiny(patch_size=patch_size))
        with torch.no_grad():
            assert model(pictures(1, *size), pictures(1, 40, 24, 1)).shape == (1, 3, *size)

    def test_styles_that_do_not_match_the_pictures(self):
        with pytest.raises(ValueError, match="got 2 styles for 3 pictures"):
            tiny()(pictures(3, 16, 16), pictures(2, 16, 16))


class TestShuffle:
    def run(self, model, **options):
        with torch.no_grad():
            return model(pictures(1, 24, 32), pictures(1, 24, 32, 1), **options)

    def test_t3_off_is_deterministic(self):
        model = awake(tiny())
        assert torch.equal(self.run(model), self.run(model))

    def test_t3_one_seed_is_one_result_and_two_are_two(self):
        model = awake(tiny())
        first, again = (self.run(model, shuffles=1, generator=seeded(3)) for _ in range(2))
        assert torch.equal(first, again)
        assert not torch.allclose(first, self.run(model, shuffles=1, generator=seeded(4)), atol=1e-4)
        assert not torch.allclose(first, self.run(model), atol=1e-4)

    def test_more_shuffles_give_the_mean_of_the_features(self):
        model = awake(tiny())
        features = model.encode_content(pictures(1, 24, 32))
        style = model.encode_style(pictures(1, 24, 32, 1))
        generator = seeded(3)
        singles = [model.fuse(features, style, 1, generator) for _ in range(3)]
        torch.testing.assert_close(model.fuse(features, style, 3, seeded(3)), torch.stack(singles).mean(0))

    def test_a_shuffle_moves_tokens_and_loses_none(self):
        from stylemamba.pipeline.mamba_st import _shuffled

        style = torch.arange(2 * 3 * 20.0).view(2, 3, 4, 5)
        moved = _shuffled(style, seeded(0))
        assert not torch.equal(moved, style)
        assert torch.equal(moved.flatten(2).sort(-1).values, style.flatten(2))
        assert torch.equal(moved[1] - moved[0], style[1] - style[0])  # the same order for all pictures


def test_save_and_load(tmp_path):
    model = awake(tiny())
    model.save_pretrained(tmp_path)
    loaded = MambaST.from_pretrained(tmp_path)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), loaded.parameters(), strict=True))
    content, style = pictures(1, 16, 16), pictures(1, 16, 16, 1)
    torch.testing.assert_close(loaded(content, style), model(content, style))
