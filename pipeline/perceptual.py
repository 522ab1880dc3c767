"""How pictures look to a trained VGG: its feature maps, the LPIPS distance, and the content terms of a fit.

Responsible for the network, for reading its published weights in either layout, and for LPIPS on top of it.  It does
not know the losses taken on the maps (`losses.py`), nor when a fit uses them.  Nothing is downloaded unless
`from_torchvision` is called, and weights are random only where a `VGGFeatures` is constructed directly.
"""

import hashlib
import importlib.util
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from safetensors.torch import load_file
from torch import Tensor, nn

from .losses import content_loss, full_precision

_CONVOLUTIONS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # per stage; a max-pool stands between two stages
_CHANNELS = (64, 128, 256, 512, 512)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_WANTED_FILES = (
    "give a state dict (.safetensors, .pth or .pt) of torchvision's vgg16 or vgg19 with keys like "
    "'features.0.weight' (e.g. vgg19-dcbb9e9d.pth), or AdaIN's vgg_normalised.pth"
)


class VGGFeatures(ModelMixin, ConfigMixin):
    """The convolutional part of a VGG, tapped by layer name (`relu1_1` ... `relu5_4`).

    depth: 16 or 19.  LPIPS' heads were calibrated on 16, the content and style losses of the papers use 19.
    layout: `torchvision` (ImageNet-normalised input, zero padding) or `normalised` (AdaIN's: a 1x1 convolution does
        the normalising, reflection padding, pools that keep a ragged edge).
    channels: width of each stage; smaller ones are for tests.

    The parameters need no gradient: this is a measuring instrument.  The LPIPS heads are all 1 until published ones
    are loaded, which the `from_...` constructors do for the standard width.  Another network may stand in for this
    one wherever it has the three tuples of taps, `forward`, `lpips_heads` and `name`.
    """

    content_taps = ("relu4_2", "relu5_2")  # of CLIPstyler's content loss
    style_taps = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
    lpips_taps = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
    normalised_content_taps = ("relu4_1", "relu5_1")  # of SANet, StyTR2, SaMam and Mamba-ST

    @register_to_config
    def __init__(
        self, depth: int = 19, layout: str = "torchvision", channels: tuple[int, ...] = _CHANNELS
    ) -> None:
        super().__init__()
        if depth not in _CONVOLUTIONS or layout not in ("torchvision", "normalised") or len(channels) != 5:
            raise ValueError(
                f"got depth {depth}, layout {layout!r}, channels {tuple(channels)}; "
                "wanted 16 or 19, 'torchvision' or 'normalised', and five widths"
            )
        padding = "zeros" if layout == "torchvision" else "reflect"
        if layout == "normalised":
            self.colour = nn.Conv2d(3, 3, 1)
        self.convs = nn.ModuleDict()
        width = 3
        for stage, count in enumerate(_CONVOLUTIONS[depth]):
            for index in range(count):
                name = f"{stage + 1}_{index + 1}"
                self.convs[name] = nn.Conv2d(width, channels[stage], 3, padding=1, padding_mode=padding)
                width = channels[stage]
        self.lpips_heads = nn.ParameterList(nn.Parameter(torch.ones(count)) for count in channels)
        self.requires_grad_(False)

    @property
    def name(self) -> str:
        """Kind and weights, for the report of a metric: `vgg16-torchvision@<start of the sha256 of the weights>`."""
        digest = hashlib.sha256()
        for parameter in self.parameters():
            digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
        return f"vgg{self.config.depth}-{self.config.layout}@{digest.hexdigest()[:12]}"

    def forward(self, images: Tensor, taps: Iterable[str]) -> dict[str, Tensor]:
        """The feature maps named by `taps`, in that order.

        images: (B, 3, H, W) in [0, 1], not clamped; the layers behind the deepest tap are not run.
        """
        taps = tuple(taps)
        unknown = [tap for tap in taps if tap.removeprefix("relu") not in self.convs]
        if unknown:
            raise ValueError(f"got taps {unknown}; wanted names from relu1_1 to relu{list(self.convs)[-1]}")
        normalised = self.config.layout == "normalised"
        smallest = 17 if normalised else 16  # so that the fifth stage still has a pixel, or two to reflect
        if images.dim() != 4 or min(images.shape[-2:]) < smallest:
            raise ValueError(
                f"got images {tuple(images.shape)}; wanted (B, 3, H, W) of at least {smallest} px"
            )

        x = images.to(self.dtype)
        if normalised:
            x = self.colour(x)
        else:
            x = (x - x.new_tensor(_IMAGENET_MEAN).view(3, 1, 1)) / x.new_tensor(_IMAGENET_STD).view(3, 1, 1)
        found: dict[str, Tensor] = {}
        for name, conv in self.convs.items():
            if len(found) == len(set(taps)):
                break
            if name.endswith("_1") and name != "1_1":
                x = F.max_pool2d(x, 2, ceil_mode=normalised)
            # Not in place: an in-place ReLU would silently turn a tap before it into a tap behind it.
            x = F.relu(conv(x))
            if f"relu{name}" in taps:
                found[f"relu{name}"] = x
        return {tap: found[tap] for tap in taps}

    def lpips(self, a: Tensor, b: Tensor) -> Tensor:
        """LPIPS distance of two batches (B, 3, H, W) in [0, 1], averaged over the batch."""
        return lpips_head(
            list(self(a, self.lpips_taps).values()), list(self(b, self.lpips_taps).values()), self.lpips_heads
        )

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> "VGGFeatures":
        """From torchvision's or AdaIN's VGG; keys need only end in `<number>.weight` and `<number>.bias`.

        Depth, layout and widths are read off the tensors; a classifier in the state dict is ignored.
        """
        order = {}
        for key, tensor in state.items():
            position = re.fullmatch(r"(?:.*\.)?(\d+)\.weight", key)
            if position and tensor.dim() == 4:
                order[int(position[1])] = key.removesuffix("weight")
        convs = [order[position] for position in sorted(order)]
        normalised = bool(convs) and state[convs[0] + "weight"].shape[-1] == 1
        depth = len(convs) - normalised + 3
        if depth not in _CONVOLUTIONS:
            raise ValueError(
                f"got a state dict with {len(convs)} convolutions, no VGG16 or VGG19; {_WANTED_FILES}"
            )
        body = iter(convs[normalised:])
        stages = [[next(body) for _ in range(count)] for count in _CONVOLUTIONS[depth]]
        channels = tuple(state[stage[0] + "weight"].shape[0] for stage in stages)
        network = cls(depth, "normalised" if normalised else "torchvision", channels)
        targets = [*([network.colour] if normalised else []), *network.convs.values()]
        for conv, source in zip(targets, convs, strict=True):
            conv.load_state_dict({part: state[source + part] for part in ("weight", "bias")})
        if channels == _CHANNELS:
            network.load_lpips_heads(_bundled_lpips_heads())
        return network.eval()

    @classmethod
    def from_file(cls, path: str | Path) -> "VGGFeatures":
        """From a state dict on disk, see `from_state_dict`; a `.pth` is read without running any code in it."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no VGG weights at {path}; {_WANTED_FILES}")
        if path.suffix == ".safetensors":
            return cls.from_state_dict(load_file(path))
        if path.suffix in (".pth", ".pt"):
            return cls.from_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        raise ValueError(f"got {path.name}, a file of unknown kind; {_WANTED_FILES}")

    @classmethod
    def from_torchvision(cls, depth: int = 19) -> "VGGFeatures":
        """Downloads torchvision's ImageNet weights (about 550 MB), or takes them from torch's cache."""
        try:
            from torchvision.models import get_model_weights

            state = get_model_weights(f"vgg{depth}").IMAGENET1K_V1.get_state_dict(
                progress=False, check_hash=True
            )
        except (ImportError, OSError) as error:
            raise OSError(
                f"torchvision's vgg{depth} could not be fetched ({error}); "
                f"download it elsewhere and call VGGFeatures.from_file: {_WANTED_FILES}"
            ) from error
        return cls.from_state_dict(state)

    def load_lpips_heads(self, state: Mapping[str, Tensor]) -> None:
        """Sets the weights of LPIPS' five layers from a state dict of the lpips project (`lin0.model.1.weight` ...)."""
        for index, head in enumerate(self.lpips_heads):
            key = f"lin{index}.model.1.weight"
            if key not in state or state[key].numel() != head.numel():
                got = tuple(state[key].shape) if key in state else "nothing"
                raise ValueError(
                    f"LPIPS head {key}: got {got}, wanted {head.numel()} weights; give lpips' vgg.pth"
                )
            head.copy_(state[key].flatten())


def _bundled_lpips_heads() -> dict[str, Tensor]:
    """The calibrated VGG16 heads (LPIPS v0.1) that torchmetrics ships; found without importing torchmetrics."""
    package = importlib.util.find_spec("torchmetrics")
    folders = package.submodule_search_locations if package else []
    for folder in folders:
        path = Path(folder, "functional", "image", "lpips_models", "vgg.pth")
        if path.is_file():
            return torch.load(path, map_location="cpu", weights_only=True)
    raise FileNotFoundError(
        "the LPIPS heads are missing: pip install torchmetrics, it ships lpips_models/vgg.pth"
    )


def lpips_head(a: Sequence[Tensor], b: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """`sum over layers of mean over positions of sum_c w_c * (unit(a)_c - unit(b)_c)^2`.

    a, b: the layers' maps (B, C, H, W), taken to unit length over the channels with 1e-10 added to the length.
    weights: one (C,) per layer.
    """
    total = 0
    for one, other, weight in zip(a, b, weights, strict=True):
        one, other = _unit_channels(full_precision(one)), _unit_channels(full_precision(other))
        total = total + ((one - other).square() * full_precision(weight)[:, None, None]).sum(1).mean()
    return total


def _unit_channels(feat: Tensor, eps: float = 1e-10) -> Tensor:
    return feat / (torch.linalg.vector_norm(feat, dim=1, keepdim=True) + eps)


class PerceptualLoss:
    """The content terms of a fit: how far a picture has moved from one content batch, whose features are kept.

    content, and each `image`: (B, 3, H, W) in [-1, 1].  Calling it gives `lpips` and `vgg`, the content loss in the
    reading `variant` (see `losses.content_loss`) on the taps that belong to it.
    """

    def __init__(self, perceptual: VGGFeatures, content: Tensor, *, variant: str = "clipstyler") -> None:
        self.perceptual = perceptual
        self.variant = variant
        self.vgg_taps = (
            perceptual.normalised_content_taps if variant == "normalised" else perceptual.content_taps
        )
        with torch.no_grad():
            self.content_maps = self._features(content)

    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        maps = self._features(image)
        lpips = (
            [features[tap] for tap in self.perceptual.lpips_taps] for features in (maps, self.content_maps)
        )
        vgg = ([features[tap] for tap in self.vgg_taps] for features in (maps, self.content_maps))
        return {
            "lpips": lpips_head(*lpips, self.perceptual.lpips_heads),
            "vgg": content_loss(*vgg, variant=self.variant),
        }

    def _features(self, image: Tensor) -> dict[str, Tensor]:
        return self.perceptual((image + 1) / 2, dict.fromkeys((*self.perceptual.lpips_taps, *self.vgg_taps)))
