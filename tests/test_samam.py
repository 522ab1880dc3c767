"""SaMam: what it begins as, that all of it can learn, and each part against its equation."""

import pytest
import torch
import torch.nn.functional as F

from stylemamba import SaMam
from stylemamba.pipeline.losses import mean_std
from stylemamba.pipeline.path_scan import PathScan
from stylemamba.pipeline.samam import SAIN, SAVSSM, VSSM, LocalEnhancement, StyleDecay
from stylemamba.pipeline.scan_orders import scan_orders
from stylemamba.pipeline.selective_scan import selective_scan_ref

TINY = {
    "embed_dim": 8,
    "style_dim": 16,
    "encoder_depth": 1,
    "groups": 1,
    "group_depth": 2,
    "d_state": 3,
    "decoder_width": 16,
}
STYLED = {
    "decoder": {"latent_channels": 4, "cond_dim": 6, "code_dim": 8, "channels": [12, 8, 6], "depth": 1},
    "tower": {"projection_size": 6, "channels": [4, 4, 4, 4, 4], "hidden_size": 8, "image_size": 32},
}


def tiny(seed=0, **options):
    torch.manual_seed(seed)
    return SaMam(**{**TINY, "patch_size": 4, **options}).eval()


def awake(model, seed=1):
    """A model that does something: the identity it starts as would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def block(seed=0, compat=False, **options):
    torch.manual_seed(seed)
    arguments = {"norm": "sain", "style_decay": True, **options}
    return SAVSSM(8, 8, d_state=3, expand=2, scan_order="zigzag", compat=compat, **arguments)


def pictures(count, height, width, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def train(module, loss, steps=200, lr=1e-2):
    """The names of those parameters that Adam never moved."""
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = torch.optim.Adam(module.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    return [name for name, p in module.named_parameters() if torch.equal(p, before[name])]


class TestStart:
    def test_m1_a_new_block_is_the_identity_for_every_style(self):
        x = torch.randn(3, 8, 6, 5)
        for style in (torch.randn(3, 8, 3, 3), 100 * torch.randn(3, 8, 3, 3)):
            assert torch.equal(block()(x, style), x)

    def test_a_new_model_passes_on_the_patches_of_the_content(self):
        model, content = tiny(), pictures(2, 32, 24)
        features = model.encode_content(content)
        assert torch.equal(features, model.content_encoder.patch_embed(content * 2 - 1))
        assert torch.equal(model.fuse(features, model.encode_style(pictures(2, 64, 64, 1))), features)

    def test_m2_with_zero_embedders_the_public_formulas_halve(self):
        x, module = torch.randn(2, 8, 5, 4), block(compat=True)
        for part in (module.norm_in, module.norm_out, module.gate):
            for parameter in part.parameters():
                torch.nn.init.zeros_(parameter)
        torch.testing.assert_close(module(x, torch.randn(2, 8, 3, 3)), 0.5 * x)

    def test_m3_every_parameter_of_a_block_learns(self):
        x, style, wanted = torch.randn(2, 8, 4, 4), torch.randn(2, 8, 3, 3), torch.randn(2, 8, 4, 4)
        module = block()
        assert train(module, lambda: F.mse_loss(module(x, style), wanted)) == []

    def test_m3_from_the_public_zero_start_most_never_learn(self):
        x, style, wanted = torch.randn(2, 8, 4, 4), torch.randn(2, 8, 3, 3), torch.randn(2, 8, 4, 4)
        module = block(compat=True)
        for part in (module.norm_in, module.norm_out, module.gate):
            for parameter in part.parameters():
                torch.nn.init.zeros_(parameter)
        unmoved = train(module, lambda: F.mse_loss(module(x, style), wanted), steps=20)
        assert len(unmoved) > len(list(module.parameters())) / 2

    @pytest.mark.parametrize("styled_decoder", [None, STYLED])
    def test_every_parameter_of_a_model_learns(self, styled_decoder):
        model = tiny(styled_decoder=styled_decoder).train()
        content, style, wanted = pictures(2, 16, 16), pictures(2, 64, 64, 1), pictures(2, 16, 16, 2)
        still = train(model, lambda: F.mse_loss(model(content, style), wanted), steps=40, lr=2e-3)
        # the tower's feature maps are given
        assert [name for name in still if not name.startswith("style_tower.features.")] == []

    @pytest.mark.parametrize("patch_size, count", [(8, 19_772_007), (4, 20_140_775)])
    @pytest.mark.parametrize("compat", [True, False])
    def test_m8_parameter_count(self, patch_size, count, compat):
        with torch.device("meta"):
            model = SaMam(patch_size=patch_size, compat=compat)
        assert sum(p.numel() for p in model.parameters()) == count


class TestStyles:
    def test_m4_a_batch_of_styles_equals_single_runs(self):
        model = awake(tiny())
        content, style = pictures(3, 24, 20), pictures(3, 64, 72, 1)
        with torch.no_grad():
            batch = model(content, style)
            single = [model(content[i : i + 1], style[i : i + 1]) for i in range(3)]
        torch.testing.assert_close(batch, torch.cat(single))
        assert not torch.allclose(single[0], model(content[:1], style[1:2]), atol=1e-3)

    def test_one_style_serves_all_pictures(self):
        model = awake(tiny())
        content, style = pictures(2, 24, 20), pictures(1, 64, 64, 1)
        torch.testing.assert_close(model(content, style), model(content, style.expand(2, -1, -1, -1)))

    @pytest.mark.parametrize("patch_size", [4, 8])
    @pytest.mark.parametrize("style", [(64, 64), (64, 129), (200, 71)])
    def test_m9_sizes(self, patch_size, style):
        model = awake(tiny(patch_size=patch_size))
        with torch.no_grad():
            assert model(pictures(1, 96, 128), pictures(1, *style, 1)).shape == (1, 3, 96, 128)
            assert model(pictures(1, 17, 45), pictures(1, *style, 1)).shape == (1, 3, 17, 45)

    def test_strength(self):
        model = awake(tiny())
        content, style = pictures(1, 16, 16), pictures(1, 64, 64, 1)
        features = model.encode_content(content)
        assert torch.equal(model(content, style, strength=0.0), model.decode(features))
        fused = model.fuse(features, model.encode_style(style))
        torch.testing.assert_close(model(content, style, strength=0.5), model.decode((features + fused) / 2))

    def test_a_style_image_too_small_to_embed(self):
        with pytest.raises(ValueError, match="8 x 8 patches, wanted at least 16"):
            tiny()(pictures(1, 16, 16), pictures(1, 32, 32))

    def test_latents_for_pictures(self):
        with pytest.raises(ValueError, match=r"shape \(1, 4, 16, 16\), wanted \(B, 3, H, W\)"):
            tiny()(torch.rand(1, 4, 16, 16), pictures(1, 64, 64))


class TestParts:
    @pytest.mark.parametrize("compat", [False, True])
    def test_only_with_compat_is_the_border_seen_in_an_even_picture(self, compat):
        even = torch.randn(1, 8, 1, 1).expand(1, 8, 6, 5)
        local = awake(LocalEnhancement(8, compat))
        conv = awake(VSSM(8, 3, 1, "zigzag", compat).conv)
        for result in (local(even), conv(even)):
            middle = result[..., 2:3, 2:3].expand_as(result)
            assert torch.allclose(result, middle, atol=1e-5) != compat

    def test_the_scan_written_out_path_by_path(self):
        torch.manual_seed(0)
        scan, u = PathScan(6, 2, 3, "zigzag").double(), torch.randn(2, 6, 3, 5, dtype=torch.float64)
        total = 0
        for k, (order, inverse) in enumerate(zip(*scan_orders("zigzag", 3, 5), strict=True)):
            path = u.flatten(2)[..., order]  # (B, D, L)
            dt, B, C = torch.einsum("cd,bdl->bcl", scan.x_proj[k], path).split((2, 3, 3), 1)
            delta = F.softplus(torch.einsum("dr,brl->bdl", scan.dt_proj[k], dt) + scan.dt_bias[k][:, None])
            y = selective_scan_ref(path, delta, -scan.A_log[k].exp(), B, C, scan.D[k])
            total = total + y[..., inverse]
        torch.testing.assert_close(scan(u), total.view_as(u))

    def test_m5_s7_with_constant_decay_is_s6(self):
        torch.manual_seed(0)
        s6, s7 = PathScan(6, 2, 3, "zigzag"), PathScan(6, 2, 3, "zigzag", own_decay=False)
        s7.load_state_dict(s6.state_dict(), strict=False)
        u = torch.randn(2, 6, 4, 4)
        A = -s6.A_log.exp().flatten(0, 1).expand(2, -1, -1)
        torch.testing.assert_close(s7(u, decay=(A, s6.D.flatten().expand(2, -1))), s6(u))

    def test_s7_begins_with_mambas_decay(self):
        A, D = StyleDecay(8, 24, 3, compat=False)(torch.randn(2, 8))
        torch.testing.assert_close(A, -torch.tensor([1.0, 2.0, 3.0]).expand(2, 24, 3))
        assert torch.equal(D, torch.ones(2, 24))

    def test_m6_a_delta_kernel_changes_nothing(self):
        """SConv with the kernel that picks the middle: the block is then SAIN, SiLU, scan, SAIN and the gate alone."""
        module, x, style = awake(block()), torch.randn(1, 8, 5, 4), torch.randn(1, 8, 3, 3)
        with torch.no_grad():
            module.to_kernel.weight.zero_()
            module.to_kernel.bias.fill_(1)  # every tap is 1: the sum over each neighbourhood
            summed = module(x, style)
            torch.nn.init.zeros_(module.to_kernel.bias)
            zero = module(x, style)
        u = F.conv2d(
            F.pad(module.in_proj(module.norm_in(x, style.mean((2, 3))).movedim(1, -1)).movedim(-1, 1), (1,) * 4, mode="reflect"),
            torch.ones(16, 1, 3, 3), groups=16,
        )  # fmt: skip
        pooled = style.mean((2, 3))
        y = module.norm_out(module.scan(F.silu(u), decay=module.decay(pooled)), pooled)
        wanted = module.out_proj(y.movedim(1, -1)).movedim(-1, 1) + module.gate(x, style)
        torch.testing.assert_close(summed, wanted)
        assert not torch.allclose(summed, zero)

    def test_m7_sain_with_the_statistics_of_a_style_is_adain(self):
        x, other = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 9, 7) * 3 + 2
        norm = SAIN(4, 4, compat=True)
        mean, std = mean_std(other)
        with torch.no_grad():
            for layer, bias in ((norm.gain, std[0]), (norm.offset, mean[0])):
                layer.weight.zero_()
                layer.bias.copy_(torch.where(bias < 0, bias / 0.1, bias))  # the inverse of its LeakyReLU
        content_mean, content_std = x.mean((2, 3), keepdim=True), x.std((2, 3), correction=0, keepdim=True)
        adain = std[0].view(4, 1, 1) * (x - content_mean) / content_std + mean[0].view(4, 1, 1)
        torch.testing.assert_close(norm(x, torch.randn(2, 4)), adain, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        "options",
        [{"norm": "layer"}, {"style_decay": False}, {"local_enhancement": False}, {"scan_order": "raster"}],
    )
    def test_each_ablation_is_another_model(self, options):
        content, style = pictures(1, 16, 16), pictures(1, 64, 64, 1)
        whole, without = tiny(), tiny(**options)
        names = [{name for name, _ in model.named_parameters()} for model in (whole, without)]
        assert names[0] != names[1] or whole.config.scan_order != without.config.scan_order
        assert awake(without)(content, style).shape == content.shape

    def test_wrong_options(self):
        with pytest.raises(ValueError, match="norm is 'batch', wanted 'sain' or 'layer'"):
            tiny(norm="batch")
        with pytest.raises(ValueError, match="patch_size is 16, wanted 4 or 8"):
            tiny(patch_size=16)


def test_save_and_load(tmp_path):
    model = awake(tiny())
    model.save_pretrained(tmp_path)
    loaded = SaMam.from_pretrained(tmp_path)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), loaded.parameters(), strict=True))
    content, style = pictures(1, 16, 16), pictures(1, 64, 64, 1)
    torch.testing.assert_close(loaded(content, style), model(content, style))
