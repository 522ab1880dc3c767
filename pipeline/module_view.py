"""A second module over the same weights: frozen, free of hooks, in any precision, and never a copy unless it must be.

Responsible for looking at a component without changing it. A prompt-fit needs gradients through components that may
be shared with other pipelines, half precision, or made under `inference_mode` by ComfyUI; a styled decoder needs the
autoencoder's weights with something added.
"""

import copy
from collections.abc import Container
from itertools import chain
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)

# where accelerate and diffusers keep their offloading hooks, and the forward that they replace
_HOOKS = ("_hf_hook", "_diffusers_hook", "_old_forward", "forward")


def module_view(
    module: Module, device=None, dtype: torch.dtype | None = None, without: Container[str] = ()
) -> Module:
    """`module` again, over the same tensors wherever device and dtype allow it. Its parameters need no gradient.

    `without`: names of direct children to leave out.
    """
    memo: dict[int, object] = {id(child): None for name, child in module.named_children() if name in without}
    for tensor in chain(module.parameters(), module.buffers()):
        if tensor.is_meta:
            raise ValueError(
                f"the weights of {type(module).__name__} are offloaded piece by piece: fit, and load styles that change "
                "the decoder, without enable_sequential_cpu_offload; enable_model_cpu_offload is fine for styles."
            )
        value = tensor.detach().to(device, dtype if tensor.is_floating_point() else None)
        if value.is_inference() and not torch.is_inference_mode_enabled():
            value = value.clone()  # autograd refuses tensors that were made under inference_mode
        memo[id(tensor)] = (
            nn.Parameter(value, requires_grad=False) if isinstance(tensor, nn.Parameter) else value
        )
    for part in module.modules():
        memo.update({id(part.__dict__[name]): None for name in _HOOKS if name in part.__dict__})
    view = copy.deepcopy(module, memo)
    for part in view.modules():
        for name in _HOOKS:
            part.__dict__.pop(name, None)
    return view.eval()
