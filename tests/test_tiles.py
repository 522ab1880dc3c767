"""Tiles: the cuts, the joints, and one mean and deviation for all of them."""

import copy

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import nn

from stylemamba import StyleFusion, StyleMambaPipeline
from stylemamba.pipeline.conditional_decoder import ConditionalDecoder
from stylemamba.pipeline.pipeline_stylemamba import TILE_HALO, WHOLE_BYTES
from stylemamba.pipeline.tiles import SharedStatistics, bytes_per_pixel, run_in_tiles, spans

_BLOCKS = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


class TestSpans:
    @pytest.mark.parametrize("length", [40, 41, 63, 64, 65, 100, 127, 200, 1001])
    @pytest.mark.parametrize("align", [1, 2, 8])
    def test_cover_the_axis_and_overlap_enough(self, length, align):
        side, halo = 64, 8
        parts = spans(length, side, halo, align)
        assert parts[0].start == 0 and parts[-1].stop == length
        cores = [(part.core_start, part.core_stop) for part in parts]
        assert [stop for _, stop in cores[:-1]] == [start for start, _ in cores[1:]]
        assert (cores[0][0], cores[-1][1]) == (0, length)
        for part in parts:
            assert part.start % align == 0 and part.core_start % align == 0
            assert part.stop - part.start < side + align
            assert part.start == 0 or part.core_start - part.start >= halo
            assert part.stop == length or part.stop - part.core_stop >= halo

    def test_what_fits_is_not_cut(self):
        assert len(spans(64, 64, 8)) == 1 and len(spans(65, 64, 8)) == 2

    def test_tiles_that_are_all_overlap_are_refused(self):
        with pytest.raises(ValueError, match="tiles of 20 overlap by 20, which leaves nothing"):
            spans(100, 20, 8)


class TestRunInTiles:
    def test_what_keeps_places_is_seamless(self):
        whole = random(2, 3, 75, 141)
        torch.testing.assert_close(run_in_tiles(lambda part: part * 2, whole, 48, 8), whole * 2)

    def test_a_filter_within_the_halo_sees_no_cut(self):
        torch.manual_seed(0)
        wide = nn.Sequential(nn.Conv2d(3, 4, 7, padding=3), nn.ReLU(), nn.Conv2d(4, 3, 7, padding=3)).eval()
        whole = random(1, 3, 90, 100)
        with torch.no_grad():
            torch.testing.assert_close(run_in_tiles(wide, whole, 40, 6), wide(whole))

    @pytest.mark.parametrize("scale", [2, 0.5])
    def test_a_network_may_change_the_size(self, scale):
        def run(part):
            return nn.functional.interpolate(part, scale_factor=scale, mode="nearest")

        whole = random(1, 3, 96, 64)
        torch.testing.assert_close(run_in_tiles(run, whole, 48, 8, align=2), run(whole))

    def test_gradients_pass(self):
        whole = random(1, 1, 60, 60).requires_grad_()
        run_in_tiles(lambda part: part.square(), whole, 40, 4).sum().backward()
        torch.testing.assert_close(whole.grad, 2 * whole.detach())


def grainy(decoder):
    """As after training: a new decoder's grain is silent, and would hide that tiles have another one than the whole."""
    for grain in (decoder.grain_low, decoder.grain_mid):
        nn.init.normal_(grain.to_amount.weight, std=0.3)
    return decoder


class TestSharedStatistics:
    @pytest.fixture
    def decoder(self):
        torch.manual_seed(0)
        return grainy(ConditionalDecoder(4, cond_dim=16, code_dim=16, channels=(12, 8, 8), depth=2)).eval()

    @staticmethod
    def picture(height, width):
        """Latents whose two halves are nothing alike, so that tiles with their own statistics would differ."""
        latents = torch.randn(1, 4, height, width, generator=torch.Generator().manual_seed(0))
        latents[..., : width // 2] = latents[..., : width // 2] * 0.2 + 1
        return latents

    @pytest.mark.parametrize("size", [(70, 120), (64, 97)])
    def test_the_painting_decoder_paints_tiles_as_it_paints_the_whole(self, decoder, size):
        latents, embeds = self.picture(*size), random(1, 16, seed=1)
        halo = -(-TILE_HALO // 4)
        with torch.no_grad():
            whole = decoder(latents, embeds)

            def tiled(shared):
                def run(part):
                    return decoder_view(part, embeds)

                decoder_view = copy.deepcopy(decoder)
                if not shared:
                    return run_in_tiles(run, latents, 56, halo, 2)
                shared = SharedStatistics(decoder_view)
                shared.measure(run, latents, 56, halo, 2)
                return run_in_tiles(run, latents, 56, halo, 2, shared)

            # pictures in [-1, 1]: a step of 8 bits is 2/255
            assert (tiled(True) - whole).abs().max() < 2 * 2 / 255
            assert (tiled(False) - whole).abs().max() > 0.2

    def test_group_norms_take_the_whole_too(self):
        torch.manual_seed(0)

        def build():
            torch.manual_seed(0)
            return nn.Sequential(
                nn.Conv2d(4, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 3, 1)
            )

        network, latents = build(), self.picture(60, 90)
        nn.init.normal_(network[1].weight), nn.init.normal_(network[1].bias)
        expected, view = network(latents), build()
        view.load_state_dict(network.state_dict())
        SharedStatistics(view).measure(view, latents, 40, 4)
        torch.testing.assert_close(run_in_tiles(view, latents, 40, 4), expected, rtol=1e-3, atol=1e-3)

    def test_attention_has_one_axis_for_both(self):
        vae, photo = (
            AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=2, **_BLOCKS).eval(),
            random(1, 3, 64, 96),
        )
        shared = copy.deepcopy(vae)
        with torch.no_grad():
            SharedStatistics(shared).measure(
                lambda part: shared.encode(part).latent_dist.mode(), photo, 96, 8, 2
            )
            # of the whole picture they are those that it has itself
            torch.testing.assert_close(
                shared.encode(photo).latent_dist.mode(),
                vae.encode(photo).latent_dist.mode(),
                rtol=1e-3,
                atol=1e-3,
            )

    def test_many_layers_take_the_reduced_picture(self):
        layers = [module for _ in range(20) for module in (nn.Conv2d(4, 4, 1), nn.GroupNorm(1, 4))]
        network = nn.Sequential(*layers)
        passes = []
        SharedStatistics(network).measure(
            lambda part: passes.append(part.shape[-2:]) or network(part), random(1, 4, 60, 90), 40, 4
        )
        assert passes == [(27, 40)]
        left, right = random(1, 4, 8, 8), random(1, 4, 8, 8, seed=1)
        with torch.no_grad():  # the statistics are settled: what is beside a part does not change it
            both = network(torch.cat([left, right], -1))
            torch.testing.assert_close(network(left), both[..., :8])


class TestPipelineInTiles:
    """With the parts of the bundled model, at random weights: what counts is that tiles equal the whole."""

    @pytest.fixture
    def pipe(self, components):
        torch.manual_seed(0)
        vae = AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8), num_encoder_blocks=(0, 0, 2),
            num_decoder_blocks=(3, 1, 0), latent_channels=4,
        ).eval()  # fmt: skip
        decoder = ConditionalDecoder(
            4, cond_dim=32, code_dim=16, channels=(12, 8, 8), depth=2, reads_fine_light=True
        )
        decoder = grainy(decoder).eval()
        fusion = StyleFusion.from_preset("tiny", cond_dim=32).eval()
        pipe = StyleMambaPipeline(**components(vae=lambda: vae, fusion=fusion, style_decoder=decoder))
        pipe.set_progress_bar_config(disable=True)
        return pipe

    @pytest.mark.parametrize("strength", [0.0, 1.0])
    def test_tiled_is_whole(self, pipe, strength):
        photo = nn.functional.interpolate(random(1, 3, 50, 70), size=(330, 470), mode="bicubic").clamp(0, 1)
        pipe.disable_tiling()
        whole = pipe(photo, "stained glass", strength=strength, output_type="pt").images
        pipe.enable_tiling(192)
        tiled = pipe(photo, "stained glass", strength=strength, output_type="pt").images
        pipe.disable_tiling()
        assert not torch.equal(tiled, whole)  # it did something
        assert (tiled - whole).abs().max() < 2 / 255

    def test_a_large_autoencoder_takes_tiles_that_fit(self, components):
        """One of Stable Diffusion's size carries 256 channels of float32 at full resolution, in seven maps."""
        with torch.device("meta"):
            vae = AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                down_block_types=["DownEncoderBlock2D"] * 4,
                up_block_types=["UpDecoderBlock2D"] * 4,
            )
        pipe = StyleMambaPipeline(**components(vae=lambda: vae))
        assert pipe._tile_for(vae, (512, 512)) is None
        tile = pipe._tile_for(vae, (4096, 4096))
        assert tile % 16 == 0 and 400 < tile and tile**2 * 7 * 256 * 4 <= WHOLE_BYTES
        pipe.enable_tiling(256)
        assert pipe._tile_for(vae, (512, 512)) == 256

    @pytest.mark.parametrize("tile", [100, 200, 0])
    def test_a_tile_that_cannot_work_says_so(self, pipe, tile):
        with pytest.raises(ValueError, match=f"tile is {tile}, wanted a multiple of 16 px, at least 192"):
            pipe.enable_tiling(tile)


def test_a_compiled_network_takes_what_it_took_before():
    decoder = ConditionalDecoder(4, cond_dim=8, code_dim=8, channels=(8, 8, 8), depth=1, scale=4)
    assert bytes_per_pixel(torch.compile(decoder)) == bytes_per_pixel(decoder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_many_layers_are_measured_in_half_precision_too(dtype):
    """At the size of a tile, to which latents are reduced on a CPU as well."""
    layers = [layer for _ in range(9) for layer in (nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4))] * 2
    network = nn.Sequential(*layers).eval().to(dtype)
    assert SharedStatistics.wanted_by(network)
    whole = random(1, 4, 90, 120).to(dtype)
    statistics = SharedStatistics(network)
    statistics.measure(network, whole, 48, 8)
