"""Padding to a network's multiple."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stylemamba.pipeline.padding import pad_to_multiple


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 9))
def test_the_next_multiple_with_the_picture_in_the_upper_left_corner(height, width, multiple):
    x = torch.rand(1, 2, height, width)
    padded = pad_to_multiple(x, multiple)
    assert torch.equal(padded[..., :height, :width], x)
    for side, raised in zip((height, width), padded.shape[-2:], strict=True):
        assert raised % multiple == 0 and side <= raised < side + multiple


def test_no_padding_gives_the_same_tensor():
    x = torch.rand(1, 3, 8, 16)
    assert pad_to_multiple(x, 8) is x


def test_reflects_where_the_picture_is_large_enough_and_repeats_the_edge_where_not():
    x = torch.arange(5.0).view(1, 1, 1, 5)
    assert pad_to_multiple(x.expand(1, 1, 8, 5), 8)[0, 0, 0].tolist() == [0, 1, 2, 3, 4, 3, 2, 1]
    assert pad_to_multiple(x[..., :2].expand(1, 1, 8, 2), 8)[0, 0, 0].tolist() == [0, 1, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("size", [(5, 5), (1, 5)])
def test_keeps_the_dtype(dtype, size):
    assert pad_to_multiple(torch.rand(1, 3, *size).to(dtype), 8).dtype == dtype


def test_gradients_reach_the_picture():
    x = torch.rand(1, 1, 5, 5, requires_grad=True)
    pad_to_multiple(x, 8).sum().backward()
    assert x.grad.ge(1).all() and x.grad.sum() == 64
