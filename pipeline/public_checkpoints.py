"""Reads the checkpoints that the authors of SaMam and of Mamba-ST published, from files on this machine.

Responsible for: reading without running any code in the file, the names that the two public repositories give their
layers, and checking every shape. No file of theirs comes with this package, and nothing is downloaded. The models come out
with `compat=True`, sizes as found in the file.
"""

import os
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .mamba_st import MambaST
from .samam import SaMam

State = dict[str, Tensor]

# Public names -> ours, applied one after the other to every key.
_SCAN = (
    (r"x_proj_weight$", "scan.x_proj"),
    (r"dt_projs_weight$", "scan.dt_proj"),
    (r"dt_projs_bias$", "scan.dt_bias"),
    (r"A_logs$", "scan.A_log"),
    (r"Ds$", "scan.D"),
    (r"conv2d\.", "conv."),
)
_SAMAM = (
    (r"^model\.", ""),  # Lightning's
    (r"encoder\.0\.proj\.", "encoder.patch_embed."),
    (r"encoder\.\d+\.cab\.", "encoder.local.cab."),
    (r"encoder\.(\d+)\.SSM\.", lambda match: f"encoder.blocks.{int(match[1]) - 1}."),
    (r"^global_embedder\.downscale\.(\d+)\.", lambda match: f"style_embedder.convs.{int(match[1]) // 3}."),
    (r"^global_embedder\.downscale2\.0\.", "style_embedder.convs.3."),
    (r"^global_embedder\.fc\.", "style_embedder.out."),
    (r"^SAVSSGs\.(\d+)\.SAVSSMs\.(\d+)\.", r"decoder_groups.\1.blocks.\2."),
    (r"^SAVSSGs\.(\d+)\.LoE\.", r"decoder_groups.\1.local."),
    (r"cab\.0\.", "conv1."),
    (r"cab\.2\.", "conv2."),
    (r"cab\.3\.attention\.1\.", "gate1."),
    (r"cab\.3\.attention\.3\.", "gate2."),
    (r"SAIN1\.", "norm_in."),
    (r"SSM\.SAIN\.", "norm_out."),
    (r"compress_gamma\.1\.", "gain."),
    (r"compress_beta\.1\.", "offset."),
    (r"SConv\.compress_key\.0\.", "to_kernel."),
    (r"A_logs_generate\.1\.", "decay.to_A."),
    (r"Ds_generate\.1\.", "decay.to_D."),
    (r"ca\.conv_du\.0\.", "gate.conv."),
    (r"ca\.conv_du\.1\.", "gate.act."),
    (r"ca\.conv_du\.2\.", "gate.out."),
    *_SCAN,
    (r"\.SSM\.", "."),
    (r"^decoder\.decoder\.", "decoder."),
)
_MAMBA_ST = (
    (r"^module\.", ""),
    (r"^(\d+)\.", r"decoder.\1."),  # the file of the picture decoder
    (r"^proj\.", "patch_embed."),  # the file of the patches
    (r"^new_ps\.", "unused_position."),
    (r"^encoder_c\.layers\.", "content_encoder."),
    (r"^encoder_s\.layers\.", "style_encoder."),
    (r"^decoder\.layers\.", "blocks."),
    (r"^decoder\.norm\.", "norm."),
    (r"\.ln_1\.", ".norm_in."),
    (r"(\.\d+)\.norm\.", r"\1.norm_out."),
    (r"skip_scale$", "scale"),
    (r"skip_scale2$", "unused_scale"),
    (r"self_attention\.", "mixer."),
    (r"in_style_proj\.", "style_proj."),
    (r"out_norm\.", "norm."),
    (r"style_proj_weight$", "scan.written"),
    *_SCAN,
)


def load_public_samam(file: str | os.PathLike) -> SaMam:
    """One file: the Lightning checkpoint of the training, or its state dict."""
    state = {key: value for key, value in _read(file).items() if not key.startswith("loss_func")}
    state = _renamed(state, _SAMAM)
    features, _, _, patch_size = _shape(state, "content_encoder.patch_embed.weight", [file])
    model = _empty(
        SaMam,
        embed_dim=features,
        patch_size=patch_size,
        style_dim=_shape(state, "decoder_groups.0.blocks.0.gate.conv.weight", [file])[1],
        encoder_depth=_count(state, r"content_encoder\.blocks\.(\d+)\."),
        groups=_count(state, r"decoder_groups\.(\d+)\."),
        group_depth=_count(state, r"decoder_groups\.0\.blocks\.(\d+)\."),
        d_state=_shape(state, "content_encoder.blocks.0.scan.A_log", [file])[-1],
        expand=_shape(state, "content_encoder.blocks.0.in_proj.weight", [file])[0] // features,
    )
    return _filled(model, state, [file])


def load_public_mamba_st(*files: str | os.PathLike) -> MambaST:
    """The three files of one iteration, in any order: `mamba_iter_*`, `decoder_iter_*` and `embedding_iter_*`."""
    state: State = {}
    for file in files:
        state |= _renamed(_read(file), _MAMBA_ST)
    # Delta and B are projected from the style by one matrix, C from the content by another; ours are rows of one.
    for key in [key for key in state if key.endswith("scan.written")]:
        rows = key.removesuffix("written") + "x_proj"
        _shape(state, rows, files)
        state[rows] = torch.cat([state.pop(key), state[rows]], dim=1)
    features, _, _, patch_size = _shape(state, "patch_embed.weight", files)
    model = _empty(
        MambaST,
        embed_dim=features,
        patch_size=patch_size,
        encoder_depth=_count(state, r"content_encoder\.(\d+)\."),
        depth=_count(state, r"blocks\.(\d+)\."),
        d_state=_shape(state, "blocks.0.mixer.scan.A_log", files)[-1],
        expand=_shape(state, "blocks.0.mixer.style_proj.weight", files)[0] // features,
    )
    return _filled(model, state, files)


def _read(file: str | os.PathLike) -> State:
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: give a checkpoint that is on this machine.")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path.name} holds more than tensors and is not read, since that could run code of whoever made it. Save "
            f"its state dict alone, on a machine where you trust it: {str(error).splitlines()[0]}"
        ) from error
    except Exception as error:  # a damaged file fails in the words of zip, pickle or safetensors
        raise ValueError(
            f"{path.name} is no checkpoint of torch, or is damaged: {str(error).splitlines()[0]}"
        ) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(
            f"{path.name} holds no state dict, wanted names with tensors, or those under 'state_dict'."
        )
    return dict(state)


def _renamed(state: State, rules: Sequence[tuple]) -> State:
    """With our names; a name that no rule knows stays, and is reported with the others."""
    renamed = {}
    for key, value in state.items():
        for pattern, name in rules:
            key = re.sub(pattern, name, key)
        renamed[key] = value
    return renamed


def _count(state: State, pattern: str) -> int:
    return len({match[1] for match in map(re.compile(pattern).match, state) if match})


def _shape(state: State, key: str, files: Sequence) -> torch.Size:
    if key not in state:
        raise ValueError(
            f"{_names(files)} lacks {key}: wanted a public checkpoint of SaMam (one file) or of Mamba-ST (its three files "
            "mamba, decoder and embedding)."
        )
    return state[key].shape


def _names(files: Sequence) -> str:
    return ", ".join(Path(file).name for file in files) or "no file"


def _empty(kind: type[nn.Module], **config) -> nn.Module:
    with torch.device("meta"):
        return kind(**config, compat=True)


def _filled(model: nn.Module, state: State, files: Sequence) -> nn.Module:
    state = _with_convolutions_in_place(state, model.decoder)
    wanted = dict(model.named_parameters())
    missing, unknown = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or unknown:
        lacks = f"lacks {len(missing)} weights ({', '.join(missing[:3])})" if missing else ""
        more = f"has {len(unknown)} that no layer takes ({', '.join(unknown[:3])})" if unknown else ""
        raise ValueError(
            f"{_names(files)} {' and '.join(filter(None, (lacks, more)))}: it is of another model or version."
        )
    fitting = {}
    for name, parameter in wanted.items():
        # 1x1 convolutions are linear layers here, and the axes of paths and channels were one.
        value, shape = state[name].squeeze(), tuple(size for size in parameter.shape if size != 1)
        merged = (shape[0] * shape[1], *shape[2:]) if len(shape) > 1 else shape
        if tuple(value.shape) not in (shape, merged):
            raise ValueError(
                f"{_names(files)}: {name} has shape {tuple(state[name].shape)}, wanted {tuple(parameter.shape)}: the checkpoint "
                "is of another configuration."
            )
        fitting[name] = value.reshape(parameter.shape).float()
    model.to_empty(device="cpu").load_state_dict(fitting)
    return model.eval()


def _with_convolutions_in_place(state: State, decoder: nn.Sequential) -> State:
    """Those of the picture decoder go by their order: between them stand layers of other numbers."""
    place = re.compile(r"decoder\.(\d+)\.(\w+)")
    theirs = sorted({int(match[1]) for match in map(place.fullmatch, state) if match})
    ours = [i for i, layer in enumerate(decoder) if isinstance(layer, nn.Conv2d)]
    number = dict(zip(map(str, theirs), ours, strict=False))
    return {
        place.sub(lambda match: f"decoder.{number.get(match[1], match[1])}.{match[2]}", key): value
        for key, value in state.items()
    }
