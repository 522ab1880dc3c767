"""A training with a budget of time, for the scripts of this folder: goes on where an earlier process stopped, and leads the rate of
learning down to almost nothing by the time the budget is spent.

    run = TimedRun(out / "state.pt", minutes, optimizer)
    if run.kept:
        model.load_state_dict(run.kept["model"])
    for step in run:
        ...
        run.log(loss=loss)
        if run.due():
            run.save(model=model.state_dict())
    run.save(model=model.state_dict())  # so that a larger budget can go on from here

A step that draws all it needs from `random.Random(f"{seed} {step}")` is the same in a run that was stopped and in one that was not.
"""

import argparse
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from stylemamba.pipeline.atomic_write import atomic_write


def add_run_options(parser: argparse.ArgumentParser, minutes: float, lr: float, batch: int) -> None:
    """The options that all trainings have, with the defaults of one."""
    parser.add_argument("--minutes", type=float, default=minutes, help="of training, all runs together")
    parser.add_argument("--lr", type=float, default=lr)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--seed", type=int, default=0)
    add_device_options(parser)


def add_device_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bfloat16", action="store_true", help="where the machine has it")


class TimedRun:
    """The steps of one training, all its processes together.

    minutes, or steps where given: the budget. warm_up: steps from the start of a process, or from `warm_again`, until the rate is
    whole. least: the share of it that is left in the end. kept: what `save` wrote last, None in a new run.
    """

    def __init__(
        self,
        file: Path,
        minutes: float,
        optimizer: torch.optim.Optimizer,
        *,
        steps: int | None = None,
        warm_up: int = 0,
        least: float = 0.01,
        save_every: float = 180,
        log_every: int = 100,
    ) -> None:
        self.file, self.minutes, self.steps, self.optimizer = file, minutes, steps, optimizer
        self.warm_up, self.least, self.save_every, self.log_every = warm_up, least, save_every, log_every
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.step, self.spent, self.kept = 0, 0.0, None
        if file.exists():
            device = optimizer.param_groups[0]["params"][0].device
            self.kept = torch.load(file, map_location=device, weights_only=True)
            optimizer.load_state_dict(self.kept["optimizer"])
            self.step, self.spent = self.kept["step"], self.kept["spent"]
        self.warmed, self.saved = 0, self.spent
        self.logged: dict[str, list[float]] = defaultdict(list)
        file.parent.mkdir(parents=True, exist_ok=True)

    @property
    def share(self) -> float:
        """Of the budget, what is spent: 0 to 1."""
        spent, budget = (self.step, self.steps) if self.steps else (self.spent, 60 * self.minutes)
        return spent / budget if spent < budget else 1.0

    def __iter__(self) -> Iterator[int]:
        begin = time.monotonic() - self.spent
        while self.share < 1:
            self.warmed += 1
            fall = max(self.least, 0.5 + 0.5 * math.cos(math.pi * self.share))
            factor = fall * min(1.0, self.warmed / max(self.warm_up, 1))
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * factor
            self.step += 1  # this one included, as `save` and `log` count
            yield self.step - 1
            self.spent = time.monotonic() - begin

    def warm_again(self) -> None:
        """For parameters that join: their first steps are small, too."""
        self.warmed = 0

    def log(self, **terms: Tensor | float) -> None:
        """Prints the means of every `log_every` steps."""
        for name, term in terms.items():
            # Not a number yet: a GPU would have to be waited for.
            self.logged[name].append(term.detach() if isinstance(term, Tensor) else term)
        if self.step % self.log_every == 0:
            means = {name: float(sum(values)) / len(values) for name, values in self.logged.items()}
            self.say(" ".join(f"{name} {mean:.4f}" for name, mean in means.items()))
            self.logged.clear()

    def say(self, message: str) -> None:
        print(f"{self.step} steps, {self.spent / 60:.1f} min, {message}", flush=True)

    def due(self) -> bool:
        """Whether it is time to save."""
        return self.spent - self.saved > self.save_every

    def save(self, **parts) -> None:
        """At the end of a step, or after the last one.  Written whole or not at all: a run may be stopped at any moment."""
        self.saved = self.spent
        state = {"optimizer": self.optimizer.state_dict(), "step": self.step, "spent": self.spent}
        with atomic_write(self.file) as part:
            torch.save(parts | state, part)
