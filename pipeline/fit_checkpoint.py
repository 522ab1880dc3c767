"""The state of an unfinished prompt-fit in one safetensors file: parameters, optimiser, snapshots, history, best.

A resumed fit continues as if it had never stopped, bit for bit on a CPU; random numbers need no place here, since
each step draws its own from the seed. A checkpoint belongs to one prompt, config, seed and set of pictures, and says
so when it is given to another.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .atomic_write import atomic_write

if TYPE_CHECKING:
    from .prompt_fit import PromptFit

FORMAT = "stylemamba-fit-checkpoint-1"


def save_checkpoint(fit: "PromptFit", path: str | os.PathLike) -> None:
    tensors = {f"parameter.{name}": value.detach() for name, value in fit.parameters.items()}
    tensors.update({f"best.{name}": value for name, value in fit.best.items()})
    for name, value in fit.parameters.items():
        for key, state in fit.optimizer.state[value].items():
            tensors[f"adam.{key}.{name}"] = state
    for index, content in enumerate(fit.contents):
        for epoch, features in content.snapshots.items():
            tensors[f"snapshot.{index}.{epoch}"] = features
    progress = {
        "done": fit.done,
        "gate_fired": fit.gate_fired,
        "history": fit.history,
        "best_loss": fit.best_loss,
    }
    metadata = {"format": FORMAT, "fit": json.dumps(fit.identity), "progress": json.dumps(progress)}
    with atomic_write(path) as part:
        save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, part, metadata=metadata)


def load_checkpoint(fit: "PromptFit", path: str | os.PathLike) -> None:
    """Puts `fit` where the checkpoint left off."""
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # copies, since the file is about to be replaced
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is no readable fit checkpoint: {error}. Delete it to start again."
        ) from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is no fit checkpoint: give the file that fit_style wrote as checkpoint=.")
    try:
        found, progress, wanted = json.loads(metadata["fit"]), json.loads(metadata["progress"]), fit.identity
        differing = [key for key in wanted | found if wanted.get(key) != found.get(key)]
        if not differing:
            _restore(fit, tensors, progress)
    except (KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path} is a damaged fit checkpoint ({error!r:.200}). Delete it to start again."
        ) from error
    if differing:
        key = differing[0]
        raise ValueError(
            f"{path} belongs to another fit: its {key} is {found.get(key)!r}, this fit's is {wanted.get(key)!r}. Fit with "
            "the same pictures, prompt, config, seed and models, or give another checkpoint path."
        )


def _restore(fit: "PromptFit", tensors: dict[str, torch.Tensor], progress: dict) -> None:
    with torch.no_grad():
        for name, value in fit.parameters.items():
            value.copy_(tensors[f"parameter.{name}"])
            fit.best[name].copy_(tensors[f"best.{name}"])
    for name, value in fit.parameters.items():
        if f"adam.step.{name}" in tensors:  # a parameter without gradient has no state
            # As Adam makes them: the moments in the layout of the parameter, the count of steps on the CPU.
            moments = {
                key: torch.empty_like(value).copy_(tensors[f"adam.{key}.{name}"])
                for key in ("exp_avg", "exp_avg_sq")
            }
            fit.optimizer.state[value] = {"step": tensors[f"adam.step.{name}"], **moments}
    for name, value in tensors.items():
        kind, _, place = name.partition(".")
        if kind == "snapshot":
            index, epoch = (int(part) for part in place.split("."))
            fit.contents[index].snapshots[epoch] = value.to(fit.device)
    fit.done, fit.gate_fired, fit.history = progress["done"], progress["gate_fired"], progress["history"]
    fit.best_loss = progress["best_loss"]
