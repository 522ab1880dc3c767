"""The state of an unfinished prompt-fit in one safetensors file: parameters, optimiser, snapshots, history, best.

A resumed fit continues as if it had never stopped, bit for bit on a CPU; random numbers need no place here, since
each step draws its own from the seed. A checkpoint belongs to one prompt, config, seed and set of pictures, and says
so when it is given to another.
"""

import json
import math
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
    progress = {"done": fit.done, "gate_fired": fit.gate_fired, "history": fit.history}
    progress["best_loss"] = fit.best_loss if math.isfinite(fit.best_loss) else None
    metadata = {"format": FORMAT, "fit": json.dumps(fit.identity()), "progress": json.dumps(progress)}
    with atomic_write(path) as part:
        save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, part, metadata=metadata)


def load_checkpoint(fit: "PromptFit", path: str | os.PathLike) -> None:
    """Puts `fit` where the checkpoint left off."""
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is no readable fit checkpoint: {error}. Delete it to start again."
        ) from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is no fit checkpoint: give the file that fit_style wrote as checkpoint=.")
    identity = json.loads(metadata["fit"])
    for key, value in fit.identity().items():
        if identity.get(key) != value:
            raise ValueError(
                f"{path} belongs to another fit: its {key} is {identity.get(key)!r}, this fit's is {value!r}. Fit with "
                "the same pictures, prompt, config and seed, or give another checkpoint path."
            )

    def stored(prefix: str) -> dict[str, torch.Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    with torch.no_grad():
        for name, value in stored("parameter.").items():
            fit.parameters[name].copy_(value)
    for name, value in fit.parameters.items():
        state = {key: tensors.get(f"adam.{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
        if state["step"] is not None:
            # Adam keeps its step count on the CPU
            fit.optimizer.state[value] = {k: v if k == "step" else v.to(fit.device) for k, v in state.items()}
    fit.best = {name: value.to(fit.device) for name, value in stored("best.").items()}
    for key, features in stored("snapshot.").items():
        index, epoch = (int(part) for part in key.split("."))
        fit.contents[index].snapshots[epoch] = features.to(fit.device)
    progress = json.loads(metadata["progress"])
    fit.done, fit.gate_fired, fit.history = progress["done"], progress["gate_fired"], progress["history"]
    fit.best_loss = math.inf if progress["best_loss"] is None else progress["best_loss"]
