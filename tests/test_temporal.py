"""Losses between frames; the numbers of the specification are in `test_vectors.py`."""

import pytest
import torch
from torch.autograd import gradcheck

from stylemamba.pipeline import temporal


def frames(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(3, 5, 6), (2, 3, 5, 6)])
def test_a_static_clip_costs_nothing(shape):
    c, y = frames(*shape), frames(*shape, seed=1)
    assert temporal.frame_difference_loss(c, c, y, y) == 0
    assert temporal.second_order_temporal_loss(y, y, y) == 0
    assert temporal.warp_loss(y, y, torch.ones(5, 6), torch.zeros(2)) == 0


def test_a_steady_change_is_no_jerk():
    y0, step = frames(3, 5, 6), frames(3, 5, 6, seed=1)
    assert temporal.second_order_temporal_loss(y0, y0 + step, y0 + 2 * step) < 1e-12
    assert temporal.frame_difference_loss(y0, y0 + step, -y0, step - y0) < 1e-12


class TestWarp:
    def test_of_a_frame_with_more_pixels_than_a_float_can_count(self):
        frame = torch.arange(4100, dtype=torch.float32).expand(1, 4100, 4100)  # each column its own number
        assert torch.equal(temporal.warp(frame, torch.zeros(2)), frame)
        moved = temporal.warp(frame, torch.tensor([0.0, 1.0]))
        assert torch.equal(moved[..., 1:], frame[..., :-1])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize(("rows", "columns"), [(0, 0), (0, 1), (2, 0), (-1, 3), (-9, 9)])
    def test_whole_pixels_move_exactly(self, rows, columns, dtype):
        frame = frames(3, 5, 7).to(dtype)
        i = (torch.arange(5) - rows).clamp(0, 4)
        j = (torch.arange(7) - columns).clamp(0, 6)
        flow = torch.tensor([rows, columns])
        assert torch.equal(temporal.warp(frame, flow), frame[:, i][:, :, j])
        dense = flow.view(2, 1, 1).expand(2, 5, 7)
        assert torch.equal(temporal.warp(frame[None], dense[None])[0], temporal.warp(frame, dense))

    def test_half_a_pixel_is_the_mean_of_two(self):
        frame = frames(1, 4, 6)
        moved = temporal.warp(frame, torch.tensor([0, 0.5]))
        torch.testing.assert_close(moved[..., 1:], (frame[..., 1:] + frame[..., :-1]) / 2)

    def test_each_frame_and_each_pixel_has_its_own_flow(self):
        frame, flow = frames(2, 3, 4, 5), torch.zeros(2, 2, 4, 5)
        flow[1, 1, :, 2] = 1
        moved = temporal.warp(frame, flow)
        desired = frame.clone()
        desired[1, :, :, 2] = frame[1, :, :, 1]
        assert torch.equal(moved, desired)

    def test_gradcheck(self):
        frame, flow = frames(1, 2, 3, 4), frames(2, 3, 4, seed=1) * 0.3
        assert gradcheck(temporal.warp, (frame.requires_grad_(), flow[None].requires_grad_()))


class TestWarpLoss:
    def test_only_trusted_pixels_count(self):
        y0, y1, mask = frames(2, 3, 4, 4), frames(2, 3, 4, 4, seed=1), torch.zeros(4, 4)
        mask[1:3, 2] = 1
        desired = ((y1 - y0) ** 2)[..., 1:3, 2].mean()
        torch.testing.assert_close(temporal.warp_loss(y0, y1, mask, torch.zeros(2)), desired)

    def test_an_empty_mask_costs_nothing(self):
        y = frames(3, 4, 4).requires_grad_()
        loss = temporal.warp_loss(y, y + 1, torch.zeros(4, 4), torch.zeros(2))
        loss.backward()
        assert loss == 0 and y.grad.isfinite().all()
