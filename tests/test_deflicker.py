"""Motion between frames, and frames that lean on the one before."""

import pytest
import torch
import torch.nn.functional as F

from stylemamba.pipeline.deflicker import Deflicker, stylize_frames
from stylemamba.pipeline.optical_flow import optical_flow
from stylemamba.pipeline.temporal import warp


def scene(height=140, width=180, seed=0):
    """Smooth shapes of several sizes."""
    generator = torch.Generator().manual_seed(seed)
    layers = [
        F.interpolate(torch.rand(1, 3, n, n, generator=generator), size=(height, width), mode="bicubic")
        for n in (4, 10, 24)
    ]
    return (sum(layers) / 3).clamp(0, 1)


def pan(count, step=(1.3, -0.7), size=(96, 120)):
    """Frames of a camera that moves over the scene; what moves by `step` in the frame is the picture."""
    whole, frames = scene(), []
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    for index in range(count):
        y, x = rows + 20 - step[0] * index, columns + 20 - step[1] * index
        grid = torch.stack([2 * x / (180 - 1) - 1, 2 * y / (140 - 1) - 1], dim=-1)[None].float()
        frames.append(F.grid_sample(whole, grid, mode="bicubic", align_corners=True).clamp(0, 1))
    return frames


class TestOpticalFlow:
    def test_equal_frames_do_not_move_at_all(self):
        assert not optical_flow(scene(), scene()).any()

    @pytest.mark.parametrize("step", [(1.3, -0.7), (0.0, 3.0), (-5.0, 4.0), (8.0, 9.0)])
    def test_a_camera_pan_is_measured(self, step):
        before, after = pan(2, step)
        flow = optical_flow(before, after)[..., 12:-12, 12:-12]
        assert flow.shape[1] == 2
        for found, wanted in zip(flow.flatten(2)[0].median(-1).values.tolist(), step, strict=True):
            assert abs(found - wanted) < 0.15

    def test_warping_by_it_gives_the_next_frame(self):
        before, after = pan(2, (3.0, 2.0))
        inside = (..., slice(10, -10), slice(10, -10))
        moved = warp(before, optical_flow(before, after))
        assert (moved - after)[inside].abs().mean() < 0.2 * (before - after)[inside].abs().mean()


class TestDeflicker:
    def test_a_static_film_stays_static_to_the_bit(self):
        painted, smooth = torch.rand(1, 3, 48, 40), Deflicker(0.8)
        for _ in range(4):
            assert torch.equal(smooth(scene(48, 40), painted), painted)

    def test_0_changes_nothing(self):
        smooth = Deflicker(0.0)
        for index, frame in enumerate(pan(3)):
            painted = scene(96, 120, seed=index)
            assert smooth(frame, painted) is painted

    def test_flicker_becomes_less(self):
        frames, generator = pan(6), torch.Generator().manual_seed(0)
        flickering = [f + 0.2 * torch.randn(f.shape, generator=generator) for f in frames]
        smooth = Deflicker(0.8)
        steady = [smooth(frame, painted) for frame, painted in zip(frames, flickering, strict=True)]

        def restlessness(film):
            flow = torch.tensor([1.3, -0.7])
            inside = (..., slice(8, -8), slice(8, -8))
            pairs = zip(film[1:-1], film[2:], strict=True)
            return sum((b - warp(a, flow))[inside].square().mean() for a, b in pairs)

        assert restlessness(steady) < 0.2 * restlessness(flickering)

    def test_a_cut_is_not_smeared(self):
        smooth = Deflicker(0.9)
        smooth(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64))
        after = smooth(torch.ones(1, 3, 64, 64), torch.ones(1, 3, 64, 64))
        assert after.min() > 0.99

    @pytest.mark.parametrize("amount", [-0.1, 1.0, float("nan")])
    def test_amounts_out_of_range(self, amount):
        with pytest.raises(ValueError, match="wanted a number from 0 to below 1"):
            Deflicker(amount)


class TestStylizeFrames:
    def test_each_frame_as_if_alone_without_deflicker(self):
        frames = pan(3)
        for frame, result in zip(frames, stylize_frames(lambda f: f.flip(1), frames), strict=True):
            assert torch.equal(result, frame.flip(1))

    def test_a_frame_that_repeats_is_painted_once(self):
        painted = []
        film = [scene(48, 40)] * 3
        results = list(stylize_frames(lambda f: painted.append(f) or f.flip(1), film, 0.5))
        assert len(painted) == 1 and all(torch.equal(result, film[0].flip(1)) for result in results)

    def test_one_frame_is_a_film(self):
        (result,) = stylize_frames(lambda f: f, [scene(48, 40)], 0.8)
        assert torch.equal(result, scene(48, 40))
