"""The style predictor of the teacher, rebuilt with gradients: the same maps as its own runtime gives."""

import sys
from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from onnxruntime import InferenceSession

sys.path.insert(0, str(Path(__file__).parent.parent / "training"))

from style_predictor import TAPS, StylePredictor, bottleneck_statistics, bundled  # noqa: E402


@pytest.fixture(scope="module")
def predictor() -> StylePredictor:
    return StylePredictor(bundled())


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    coarse = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, (256, 256), mode="bicubic").clamp(0, 1)


def test_maps_are_those_of_the_runtime_up_to_its_rounding(predictor, picture):
    model = onnx.load(bundled())
    for name in predictor.taps:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = session.run(predictor.taps, {predictor.source: picture.permute(0, 2, 3, 1).numpy()})
    with torch.no_grad():
        maps = predictor(picture)
    for got, of_runtime, width in zip(maps, wanted, TAPS, strict=True):
        assert got.shape == of_runtime.shape and got.shape[1] == width
        pair = torch.stack([got.flatten(), torch.from_numpy(of_runtime).flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.995  # it computes in 8 bits


def test_gradients_reach_the_picture(predictor, picture):
    pixels = picture[..., :96, :64].clone().requires_grad_()
    bottleneck_statistics(predictor(pixels)).sum().backward()
    assert torch.isfinite(pixels.grad).all() and (pixels.grad != 0).float().mean() > 0.9


def test_statistics_are_means_above_and_below_zero_and_deviations():
    x = torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    above, below, deviation = bottleneck_statistics([x]).chunk(3, 1)
    torch.testing.assert_close(above - below, x.mean((2, 3)))
    torch.testing.assert_close(above + below, x.abs().mean((2, 3)))
    torch.testing.assert_close(deviation**2, (x**2).mean((2, 3)) - x.mean((2, 3)) ** 2 + 1e-5)


def test_another_network_is_refused():
    with pytest.raises(ValueError, match="wanted a style predictor"):
        StylePredictor(bundled().with_name("arbitrary_transform.onnx"))
