"""The one place that imports ComfyUI, by its numbered API, so that a change in the host is met in one file.

Responsible for: the classes that nodes are made of, the host's devices, memory, progress, folders and native objects.
Knows nothing of styles. Beside `io`, everything of the host is imported when it is used.
"""
# ruff: noqa: TID251

import dataclasses
import os
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

try:
    from comfy_api.v0_0_2 import ComfyExtension, io, ui
except ImportError:  # a host without numbered versions
    from comfy_api.latest import ComfyExtension, io, ui

__all__ = ["ComfyExtension", "io"]

Model = io.Custom("STYLEMAMBA_MODEL")
Style = io.Custom("STYLEMAMBA_STYLE")
Regions = io.Custom("STYLEMAMBA_REGIONS")
HAS_AUTOGROW = hasattr(io, "Autogrow")
_PREVIEW_SIDE = 512


def schema(**fields) -> io.Schema:
    """`io.Schema` without what this version of the host does not know: one unknown keyword would fail the whole pack."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return io.Schema(**{name: value for name, value in fields.items() if name in known})


# Memory


def patcher(module: nn.Module):
    """Puts a module under the host's memory manager."""
    import comfy.model_management as management
    from comfy.model_patcher import ModelPatcher

    return ModelPatcher(module, management.get_torch_device(), management.unet_offload_device())


def load(patcher, memory: int = 0) -> None:
    """Brings a whole module to its device, with `memory` bytes to spare; the host makes room."""
    import comfy.model_management as management

    # In parts would not do: only layers of the host's own kind can be loaded piece by piece.
    management.load_models_gpu([patcher], memory_required=memory, force_full_load=True)
    # With --novram the host brings those layers alone, whatever it is asked.
    patcher.model.to(patcher.load_device)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Also where the allocator is not torch's own for CUDA: only its words tell then, those of a CPU "can't allocate memory"."""
    import comfy.model_management as management

    known = getattr(management, "is_oom", None)  # which also clears the device's error; newer hosts
    if known is not None and known(error):
        return True
    words = str(error).lower()  # of torch's own class too
    return "out of memory" in words or "allocate memory" in words


def release_memory() -> None:
    import comfy.model_management as management

    management.soft_empty_cache()


def intermediate(tensor: Tensor) -> Tensor:
    """As the host wants what passes between nodes."""
    import comfy.model_management as management

    dtype = getattr(management, "intermediate_dtype", lambda: torch.float32)()
    return tensor.to(management.intermediate_device(), dtype)


# Progress


class Progress:
    """The progress bar of the running node. Every call of it is a place where the user can cancel."""

    def __init__(self, total: int) -> None:
        from comfy.utils import ProgressBar

        self._total, self._bar = total, ProgressBar(total)

    def __call__(self, done: int, preview=None) -> None:
        """`preview`: a PIL picture to show in the node, or None. Raises the host's interrupt if the user cancelled."""
        import comfy.model_management as management

        management.throw_exception_if_processing_interrupted()
        shown = None if preview is None else ("JPEG", preview, _PREVIEW_SIDE)
        self._bar.update_absolute(done, self._total, shown)


def shown_pictures(images: Tensor, cls):
    """The `ui` of a node that shows IMAGE in its body, where the host can."""
    preview = getattr(ui, "PreviewImage", None)
    return None if preview is None else preview(images, cls=cls)


def shown_text(text: str):
    preview = getattr(ui, "PreviewText", None)
    return None if preview is None else preview(text)


# Folders


def model_roots() -> list[Path]:
    """Folders for this pack's models and styles: `models/stylemamba`, and those named in extra_model_paths.yaml. The last
    one is written to."""
    import folder_paths

    default = os.path.join(folder_paths.models_dir, "stylemamba")
    paths, _ = folder_paths.folder_names_and_paths.get("stylemamba", ([], set()))
    paths = paths if default in paths else [*paths, default]
    # With an empty set of suffixes the host would list every file.
    folder_paths.folder_names_and_paths["stylemamba"] = (paths, {".safetensors"})
    return [Path(path) for path in paths]


def output_folder() -> Path:
    import folder_paths

    return Path(folder_paths.get_output_directory())


# Native objects


def native_vae(autoencoder: nn.Module, patcher, *, factor: int, channels: int, dtype: torch.dtype, pad):
    """`comfy.sd.VAE` around a module that has `encode` and `decode` of its own.

    factor: pixels per latent on a side. pad: makes pictures (B, H, W, C) a multiple of it, where the host would crop.
    """
    import comfy.model_management as management
    import comfy.sd

    try:
        # Its smallest kind, so that every attribute of this version of the host is there.
        vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
    except TypeError:  # a VAE that takes no state dict has no attributes of this kind either
        vae = comfy.sd.VAE.__new__(comfy.sd.VAE)
    vae.first_stage_model, vae.patcher, vae.vae_dtype = autoencoder, patcher, dtype
    vae.device, vae.output_device = patcher.load_device, management.intermediate_device()
    vae.downscale_ratio = vae.upscale_ratio = factor
    vae.latent_channels, vae.latent_dim, vae.output_channels = channels, 2, 3
    vae.disable_offload = True  # load the whole of it, see `load`
    vae.vae_encode_crop_pixels = pad
    # Bytes, by the host's own estimate for the autoencoders of the SD family.
    size = management.dtype_size(dtype)
    vae.memory_used_encode = lambda shape, _: 1767 * shape[2] * shape[3] * size
    vae.memory_used_decode = lambda shape, _: 2178 * shape[2] * shape[3] * factor**2 * size
    return vae


def video(images: Tensor, audio, frame_rate):
    """A native VIDEO of IMAGE frames, or None where the host makes none."""
    with suppress(ImportError):
        from comfy_api.v0_0_2 import InputImpl, Types

        return InputImpl.VideoFromComponents(
            Types.VideoComponents(images=images, audio=audio, frame_rate=frame_rate)
        )
