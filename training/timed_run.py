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

    minutes, or steps where given: the budget. warm_up: steps from the first, or from `warm_again`, until the rate is whole. least:
    the share of it that is left in the end. kept: what `save` wrote last, on the CPU, None in a new run. share: of the budget, what
    was spent when the step began, 0 to 1.
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
        self.step, self.spent, self.warmed, self.kept = 0, 0.0, 0, None
        if file.exists():
            # On the CPU: the optimizer takes its own to where its parameters are, but for the counters that torch wants there.
            self.kept = torch.load(file, map_location="cpu", weights_only=True)
            optimizer.load_state_dict(self.kept["optimizer"])
            self.step, self.spent, self.warmed = (self.kept[key] for key in ("step", "spent", "warmed"))
        self.share, self.saved = self._share(), self.spent
        self.logged: dict[str, list] = defaultdict(list)
        file.parent.mkdir(parents=True, exist_ok=True)

    def __iter__(self) -> Iterator[int]:
        begin = time.monotonic() - self.spent
        while self.share < 1:
            self.step += 1  # this one included, as `save` and `log` count
            self.warmed += 1
            self._set_rates()
            yield self.step - 1
            self.spent = time.monotonic() - begin
            self.share = self._share()

    def _share(self) -> float:
        """Of the budget, what is spent: 0 to 1."""
        spent, budget = (self.step, self.steps) if self.steps else (self.spent, 60 * self.minutes)
        return spent / budget if spent < budget else 1.0

    def _set_rates(self) -> None:
        fall = max(self.least, 0.5 + 0.5 * math.cos(math.pi * self.share))
        factor = fall * min(1.0, self.warmed / max(self.warm_up, 1))
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def warm_again(self) -> None:
        """From this step on, for parameters that join: their first steps are small, too."""
        self.warmed = 1
        self._set_rates()

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
        state = {"step": self.step, "spent": self.spent, "warmed": self.warmed}
        save_whole({**parts, **state, "optimizer": self.optimizer.state_dict()}, self.file)


def save_whole(what: object, file: Path) -> None:
    """As `torch.save`, but whole or not at all."""
    with atomic_write(file) as part:
        torch.save(what, part)
