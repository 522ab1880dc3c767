"""Scan orders against the vectors and against what makes each kind what it is."""

import json
from itertools import product
from pathlib import Path

import pytest
import torch

from stylemamba.pipeline.scan_orders import scan_orders
from stylemamba.pipeline.selective_scan import selective_scan

_file = Path(__file__).parent / "vectors" / "loss_vectors.json"
VECTORS = {
    case["id"]: case for case in json.loads(_file.read_text())["cases"] if case["id"].startswith("order.")
}
SIZED = [name for name, case in VECTORS.items() if "height" in case["inputs"]]
KINDS = {"raster": 1, "bidirectional": 2, "cross": 4, "zigzag": 4}
each_kind = pytest.mark.parametrize("kind", KINDS)


def longest_steps(orders, width):
    """Per path, the largest Manhattan distance between consecutive tokens."""
    rows, columns = orders // width, orders % width
    steps = rows.diff(dim=1).abs() + columns.diff(dim=1).abs()  # (K, L - 1)
    return steps.amax(1).tolist() if steps.numel() else [0] * len(orders)


@pytest.mark.parametrize("name", SIZED)
def test_vectors(name):
    height, width = VECTORS[name]["inputs"]["height"], VECTORS[name]["inputs"]["width"]
    expected = VECTORS[name]["expected"]
    orders, inverses = scan_orders(name.split(".")[1], height, width)
    assert orders.tolist() == expected["orders"]
    assert inverses.tolist() == expected["inverses"]
    assert longest_steps(orders, width) == expected["max_manhattan_step"]


def test_labels_of_the_figure():
    labels = torch.tensor(VECTORS["order.zigzag.figure"]["inputs"]["labels_row_major"])
    orders, _ = scan_orders("zigzag", 4, 4)
    assert labels[orders].tolist() == VECTORS["order.zigzag.figure"]["expected"]["sequences"]


@each_kind
def test_permutations_and_their_inverses(kind):
    for height, width in product(range(1, 8), repeat=2):
        orders, inverses = scan_orders(kind, height, width)
        tokens = torch.arange(height * width)
        assert orders.dtype == inverses.dtype == torch.long
        assert orders.shape == inverses.shape == (KINDS[kind], height * width)
        for order, inverse in zip(orders, inverses, strict=True):
            assert torch.equal(order.sort().values, tokens)
            assert torch.equal(tokens[order][inverse], tokens)


def test_zigzag_never_jumps():
    for height, width in product(range(1, 10), repeat=2):
        orders, _ = scan_orders("zigzag", height, width)
        assert max(longest_steps(orders, width)) <= 1


def test_zigzag_starts_in_each_corner():
    orders, _ = scan_orders("zigzag", 5, 7)
    assert orders[:, 0].tolist() == [0, 34, 6, 28]
    # Along the row, along the row, down the column, up the column.
    assert (orders[:, 1] - orders[:, 0]).tolist() == [1, -1, 7, -7]


def test_cross_jumps_at_the_end_of_rows_and_columns():
    orders, _ = scan_orders("cross", 5, 7)
    assert longest_steps(orders, 7) == [7, 5, 7, 5]


def test_raster_and_bidirectional():
    raster, _ = scan_orders("raster", 3, 4)
    both, inverses = scan_orders("bidirectional", 3, 4)
    assert raster.tolist() == [list(range(12))]
    assert both.tolist() == [list(range(12)), list(reversed(range(12)))]
    assert torch.equal(both, inverses)


@each_kind
def test_identity_scan_returns_the_sum_of_the_paths(kind):
    """With C = 0 and D = 1 a scan passes its input on; what comes back is K times the image."""
    x = torch.randn(2, 3, 20)  # (B, D, L)
    orders, inverses = scan_orders(kind, 4, 5)
    paths, length = orders.shape
    u = x[:, :, orders].transpose(1, 2).flatten(1, 2)  # (B, K*D, L)
    states = torch.zeros(2, paths, 2, length)
    y = selective_scan(
        u,
        torch.rand_like(u),
        -torch.ones(paths * 3, 2),
        torch.randn_like(states),
        states,
        torch.ones(paths * 3),
    )
    y = y.unflatten(1, (paths, 3))  # (B, K, D, L)
    merged = sum(y[:, k][..., inverses[k]] for k in range(paths))
    torch.testing.assert_close(merged, paths * x)


@each_kind
def test_cached(kind):
    first, second = scan_orders(kind, 6, 11), scan_orders(kind, 6, 11, device="cpu")
    assert first[0] is second[0]
    assert first[1] is second[1]


def test_of_use_for_training_after_a_call_in_inference_mode():
    with torch.inference_mode():
        orders, inverses = scan_orders("cross", 13, 3)
    assert not orders.is_inference()
    assert not inverses.is_inference()
    x = torch.randn(39, requires_grad=True)
    x[orders].square().sum().backward()
    torch.testing.assert_close(x.grad, 8 * x.detach())


def test_unknown_kind():
    with pytest.raises(
        ValueError, match="'hilbert' is unknown; use one of raster, bidirectional, cross, zigzag"
    ):
        scan_orders("hilbert", 2, 2)


@pytest.mark.parametrize(("height", "width"), [(0, 3), (3, 0), (-1, 4)])
def test_empty_grid(height, width):
    with pytest.raises(ValueError, match=f"the grid is {height} x {width}, wanted at least 1 x 1"):
        scan_orders("raster", height, width)
