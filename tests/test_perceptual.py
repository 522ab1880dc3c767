"""The VGG in both published layouts, LPIPS against the lpips package, and the content terms of a fit."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.autograd import gradcheck

from stylemamba.pipeline import losses
from stylemamba.pipeline.perceptual import PerceptualLoss, VGGFeatures, lpips_head

CHANNELS = (3, 4, 5, 6, 6)
STAGES = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def tiny(**config):
    torch.manual_seed(0)
    return VGGFeatures(channels=CHANNELS, **config)


def published(depth, layout):
    """The network as torchvision or AdaIN's authors build it: one nn.Sequential, and the names of its ReLUs."""
    torch.manual_seed(1)
    layers, names, width = [], {}, 3
    if layout == "normalised":
        layers.append(nn.Conv2d(3, 3, 1))
    for stage, count in enumerate(STAGES[depth]):
        for index in range(count):
            if layout == "normalised":
                layers += [nn.ReflectionPad2d(1), nn.Conv2d(width, CHANNELS[stage], 3), nn.ReLU()]
            else:
                layers += [nn.Conv2d(width, CHANNELS[stage], 3, padding=1), nn.ReLU()]
            names[f"relu{stage + 1}_{index + 1}"] = len(layers)
            width = CHANNELS[stage]
        layers.append(nn.MaxPool2d(2, ceil_mode=layout == "normalised"))
    return nn.Sequential(*layers), names


class TestVGGFeatures:
    @pytest.mark.parametrize(
        ("depth", "layout"), [(16, "torchvision"), (19, "torchvision"), (19, "normalised")]
    )
    def test_published_weights_give_the_published_network(self, depth, layout):
        reference, names = published(depth, layout)
        prefix = "features." if layout == "torchvision" else ""
        state = {prefix + key: value for key, value in reference.state_dict().items()}
        state["classifier.0.weight"] = torch.zeros(4, 4)  # a full torchvision file has one
        network = VGGFeatures.from_state_dict(state)
        assert (network.config.depth, network.config.layout) == (depth, layout)

        x = images(2, 3, 37, 50)
        seen = x
        if layout == "torchvision":
            mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
            seen = (x - mean[:, None, None]) / std[:, None, None]
        maps = network(x, names)
        assert list(maps) == list(names)
        for name, length in names.items():
            torch.testing.assert_close(maps[name], reference[:length](seen))

    def test_taps_come_in_the_order_asked_for(self):
        network, x = tiny(), images(1, 3, 16, 16)
        assert list(network(x, ["relu3_1", "relu1_2", "relu3_1"])) == ["relu3_1", "relu1_2"]
        assert network(x, ["relu5_2"])["relu5_2"].shape == (1, 6, 1, 1)

    def test_exception(self):
        network = tiny()
        with pytest.raises(ValueError, match=r"relu1_1 to relu5_4"):
            network(images(1, 3, 16, 16), ["relu6_1"])
        with pytest.raises(ValueError, match="at least 16 px"):
            network(images(1, 3, 15, 40), ["relu1_1"])
        with pytest.raises(ValueError, match="16 or 19"):
            VGGFeatures(depth=13)
        with pytest.raises(ValueError, match="vgg_normalised.pth"):
            VGGFeatures.from_state_dict({"features.0.weight": torch.zeros(4, 3, 3, 3)})

    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    def test_from_file(self, tmp_path, suffix):
        state = {
            f"features.{key}": value for key, value in published(19, "torchvision")[0].state_dict().items()
        }
        path = tmp_path / f"vgg19{suffix}"
        save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
        assert VGGFeatures.from_file(path).name == VGGFeatures.from_state_dict(state).name

    def test_missing_weights_say_which_file_to_give(self, tmp_path, monkeypatch):
        with pytest.raises(FileNotFoundError, match=r"vgg19-dcbb9e9d\.pth"):
            VGGFeatures.from_file(tmp_path / "vgg.pth")
        (tmp_path / "vgg.bin").touch()
        with pytest.raises(ValueError, match="unknown kind"):
            VGGFeatures.from_file(tmp_path / "vgg.bin")

        torchvision = pytest.importorskip("torchvision")

        def offline(name):
            raise OSError("no route to host")

        monkeypatch.setattr(torchvision.models, "get_model_weights", offline)
        with pytest.raises(OSError, match=r"no route to host.*vgg19-dcbb9e9d\.pth"):
            VGGFeatures.from_torchvision()

    def test_save_and_load_as_a_diffusers_component(self, tmp_path):
        network = tiny(depth=16, layout="normalised")
        network.lpips_heads[0].fill_(0.5)
        network.save_pretrained(tmp_path)
        loaded = VGGFeatures.from_pretrained(tmp_path)
        assert loaded.name == network.name
        assert (loaded.config.depth, loaded.config.layout) == (16, "normalised")
        for key, value in network.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value)
        assert not any(parameter.requires_grad for parameter in loaded.parameters())

    def test_the_name_tells_weights_apart(self):
        network = tiny()
        name = network.name
        assert name.startswith("vgg19-torchvision@")
        network.convs["3_2"].bias.add_(1e-3)
        assert network.name != name

    def test_the_picture_has_a_gradient_and_the_weights_have_none(self):
        network, x = tiny(), images(1, 3, 16, 16).requires_grad_()
        network(x, ["relu4_2"])["relu4_2"].sum().backward()
        assert x.grad.isfinite().all() and x.grad.abs().sum() > 0
        assert all(parameter.grad is None for parameter in network.parameters())


class TestLPIPS:
    @pytest.mark.filterwarnings("ignore::UserWarning:torchvision")  # lpips calls it in a deprecated way
    def test_feature(self):
        """The lpips package's own network and heads, with random convolutions in both."""
        lpips = pytest.importorskip("lpips")
        torch.manual_seed(0)
        reference = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
        convs = {}
        for key, value in reference.net.state_dict().items():  # sliceN.<index in features>.weight
            convs[key.split(".", 1)[1]] = value
        network = VGGFeatures.from_state_dict(convs)
        assert network.config.depth == 16
        a, b = images(1, 3, 32, 40), images(1, 3, 32, 40, seed=1)
        with torch.no_grad():
            desired = reference(a * 2 - 1, b * 2 - 1).squeeze()
        torch.testing.assert_close(network.lpips(a, b), desired)

    def test_not_negative_and_zero_for_equal(self):
        network, a = tiny(), images(2, 3, 16, 20)
        assert network.lpips(a, a) == 0
        assert network.lpips(a, images(2, 3, 16, 20, seed=1)) > 0

    def test_gradient(self):
        def maps(seed):
            generator = torch.Generator().manual_seed(seed)
            return torch.randn(1, 3, 2, 2, generator=generator, dtype=torch.float64)

        weights = [torch.tensor([0.5, 1.0, 2.0])]
        a, b = maps(0).requires_grad_(), maps(1)
        assert gradcheck(lambda x: lpips_head([x], [b], weights), a)
        dead = torch.zeros(1, 3, 2, 2, requires_grad=True)  # all of a position's channels behind their ReLUs
        lpips_head([dead], [torch.zeros(1, 3, 2, 2)], weights).backward()
        assert dead.grad.isfinite().all()

    def test_exception(self):
        with pytest.raises(ValueError, match=r"lin0\.model\.1\.weight.*vgg\.pth"):
            tiny().load_lpips_heads({"lin0.model.1.weight": torch.ones(1, 7, 1, 1)})
        with pytest.raises(ValueError, match="got nothing"):
            tiny().load_lpips_heads({})


class TestPerceptualLoss:
    @pytest.mark.parametrize("variant", ["clipstyler", "normalised"])
    def test_feature(self, variant):
        network = tiny()
        X, Y = (images(1, 3, 32, 32, seed=seed) * 2 - 1 for seed in (1, 2))
        terms = PerceptualLoss(network, X, variant=variant)(Y)
        x, y = X / 2 + 0.5, Y / 2 + 0.5
        taps = {"clipstyler": ["relu4_2", "relu5_2"], "normalised": ["relu4_1", "relu5_1"]}[variant]
        maps = [list(network(image, taps).values()) for image in (y, x)]
        torch.testing.assert_close(terms["lpips"], network.lpips(y, x))
        torch.testing.assert_close(terms["vgg"], losses.content_loss(*maps, variant=variant))

    def test_finite_gradient_at_the_content(self):
        X = (images(1, 3, 32, 32) * 2 - 1).requires_grad_()
        loss = PerceptualLoss(tiny(), X)
        assert not any(kept.requires_grad for kept in loss.content_maps.values())
        terms = loss(X)
        assert terms["lpips"] == 0 and terms["vgg"] == 0
        sum(terms.values()).backward()
        assert X.grad.isfinite().all()
