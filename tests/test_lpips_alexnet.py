"""LPIPS v0.1 of benchmarks/, from files as they are published, against the package that defines it."""

import pickle
import sys
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from lpips_alexnet import LpipsAlexNet  # noqa: E402
from lpips_jax import vgg  # noqa: E402

from stylemamba import VGGFeatures  # noqa: E402

SIZES = ((64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3))


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """As torchvision saves it, classifier and all."""
    state = {"classifier.1.weight": torch.zeros(2, 2)}
    for position, (out, wide, side) in zip((0, 3, 6, 8, 10), SIZES, strict=True):
        state[f"features.{position}.weight"] = (noise(out, wide, side, side, seed=position) - 0.5) * 0.2
        state[f"features.{position}.bias"] = noise(out, seed=position + 1) * 0.1
    return state


@pytest.fixture(scope="module")
def torchvision_file(state, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("torchvision") / "alexnet-owt.pth"
    torch.save(state, file)
    return file


def test_it_is_lpips_with_these_weights(state, torchvision_file):
    network = LpipsAlexNet.from_file(torchvision_file)
    reference = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    own = reference.net.state_dict()
    for slice_number, position in zip((1, 2, 3, 4, 5), (0, 3, 6, 8, 10), strict=True):
        for part in ("weight", "bias"):
            own[f"slice{slice_number}.{position}.{part}"] = state[f"features.{position}.{part}"]
    reference.net.load_state_dict(own)
    a, b = noise(2, 3, 64, 80, seed=20), noise(2, 3, 64, 80, seed=21)
    with torch.no_grad():
        wanted = reference(a, b, normalize=True).mean()
    torch.testing.assert_close(network.lpips(a, b), wanted, rtol=1e-4, atol=1e-6)
    assert network.lpips(a, a) == 0
    assert [m.shape[1] for m in network(a)] == [len(head) for head in network.heads] == [s[0] for s in SIZES]


def test_lpips_jax_keeps_the_same_convolutions_the_other_way_round(state, torchvision_file, tmp_path):
    layers = {
        f"Conv_{number}": {
            "kernel": state[f"features.{position}.weight"].permute(2, 3, 1, 0).numpy(),
            "bias": state[f"features.{position}.bias"].numpy(),
        }
        for number, position in enumerate((0, 3, 6, 8, 10))
    }
    file = tmp_path / "alexnet.ckpt"
    file.write_bytes(pickle.dumps({"AlexNet_0": layers, "NetLinLayer_0": {}}))
    one, other = LpipsAlexNet.from_file(file), LpipsAlexNet.from_file(torchvision_file)
    assert one.name == other.name
    a, b = noise(1, 3, 64, 64, seed=20), noise(1, 3, 64, 64, seed=21)
    assert one.lpips(a, b) == other.lpips(a, b)


def test_its_vgg16_is_the_one_with_these_convolutions(tmp_path):
    widths = [3, 64, 64, 128, 128, 256, 256, 256, *[512] * 6]
    state, layers = {}, {}
    for number, (wide, out) in enumerate(zip(widths, widths[1:], strict=False)):
        weight, bias = (noise(out, wide, 3, 3, seed=number) - 0.5) * 0.1, noise(out, seed=number) * 0.1
        state |= {f"features.{number}.weight": weight, f"features.{number}.bias": bias}
        layers[f"Conv_{number}"] = {"kernel": weight.permute(2, 3, 1, 0).numpy(), "bias": bias.numpy()}
    file = tmp_path / "vgg16.ckpt"
    file.write_bytes(pickle.dumps({"VGG16_0": layers, "NetLinLayer_0": {}}))
    torch.save(state, tmp_path / "vgg16.pth")
    one, other = vgg(file), vgg(tmp_path / "vgg16.pth")
    assert one.name == other.name == VGGFeatures.from_state_dict(state).name
    assert one.name.startswith("vgg16-torchvision@")
    a, b = noise(1, 3, 32, 32, seed=20), noise(1, 3, 32, 32, seed=21)
    assert one.lpips(a, b) == other.lpips(a, b) > 0


class _Harm:
    def __reduce__(self):
        return (np.save, ("never", 0))


def test_exception(state, tmp_path):
    with pytest.raises(FileNotFoundError, match="lpips-jax"):
        LpipsAlexNet.from_file(tmp_path / "none.ckpt")
    file = tmp_path / "alexnet.pth"
    torch.save({key: value for key, value in state.items() if "10" not in key}, file)
    with pytest.raises(ValueError, match=r"alexnet.pth lacks 'features.10.weight'.*lpips-jax"):
        LpipsAlexNet.from_file(file)
    file = tmp_path / "alexnet.ckpt"
    file.write_bytes(pickle.dumps({"AlexNet_0": _Harm()}))
    with pytest.raises(pickle.UnpicklingError, match="wanted arrays only"):
        LpipsAlexNet.from_file(file)
