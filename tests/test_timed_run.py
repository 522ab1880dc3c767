"""A training with a budget: its rate, what it prints, and that it goes on where it stopped."""

import argparse
import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "training"))

import timed_run  # noqa: E402
from timed_run import TimedRun, add_run_options  # noqa: E402


class Clock:
    """Seconds that pass when the test says so."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timed_run, "time", clock)
    return clock


def new(seed=0, lr=0.1):
    torch.manual_seed(seed)
    model = torch.nn.Linear(3, 1)
    return model, torch.optim.Adam(model.parameters(), lr=lr)


def learn(run, model, until=None):
    """Least squares on data of the step's own -> steps done here."""
    done = []
    for step in run:
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        loss = (model(x)[:, 0] - x.sum(1)).square().mean()
        run.optimizer.zero_grad()
        loss.backward()
        run.optimizer.step()
        run.log(loss=loss)
        done.append(step)
        if step == until:
            run.save(model=model.state_dict())
            break
    return done


def test_the_rate_falls_as_a_cosine_after_a_warm_up(tmp_path):
    _, optimizer = new(lr=0.1)
    run = TimedRun(tmp_path / "state.pt", 0, optimizer, steps=100, warm_up=4, least=0.05)
    rates = [optimizer.param_groups[0]["lr"] for _ in run]
    wanted = [
        0.1 * max(0.05, (1 + math.cos(math.pi * s / 100)) / 2) * min(1, (s + 1) / 4) for s in range(100)
    ]
    assert rates == pytest.approx(wanted)


def test_parameters_that_join_get_a_warm_up_of_their_own(tmp_path):
    _, optimizer = new(lr=1.0)
    run, rates = TimedRun(tmp_path / "state.pt", 0, optimizer, steps=1000, warm_up=10), []
    for step in run:
        if step == 29:
            run.warm_again()
        rates.append(optimizer.param_groups[0]["lr"])
        if step == 45:
            break
    fall = [(1 + math.cos(math.pi * s / 1000)) / 2 for s in range(46)]
    assert rates[27:32] == pytest.approx(
        [fall[27], fall[28], *(fall[29 + i] * (i + 1) / 10 for i in range(3))]
    )
    assert rates[45] == pytest.approx(fall[45])


def test_each_group_keeps_its_own_rate(tmp_path):
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD(
        [{"params": parameters[:1], "lr": 1.0}, {"params": parameters[1:], "lr": 0.1}]
    )
    run = TimedRun(tmp_path / "state.pt", 0, optimizer, steps=10)
    for _ in run:
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert first == pytest.approx(10 * second)


def test_it_ends_when_the_minutes_of_all_processes_are_spent(tmp_path, clock):
    file = tmp_path / "new" / "state.pt"
    model, optimizer = new()
    run = TimedRun(file, 1, optimizer, save_every=15)
    dues = []
    for step in run:
        dues.append(run.due())
        clock.now += 10
        if run.due():
            run.save(model=model.state_dict())
        if step == 3:
            break
    assert dues == [False, False, True, False]  # 20 s are more than 15; then it has been saved
    run.save(model=model.state_dict())
    clock.now += 1000  # the machine was off
    again = TimedRun(file, 1, new()[1])
    spent = []
    for _ in again:
        spent.append(again.spent)
        clock.now += 10
    assert spent == [30, 40, 50]  # what the last step took before it was saved is not known
    assert again.share == 1 and list(again) == []


def test_a_stopped_run_ends_as_one_that_was_not(tmp_path):
    model, optimizer = new()
    assert learn(TimedRun(tmp_path / "whole.pt", 0, optimizer, steps=40, warm_up=25), model) == list(
        range(40)
    )

    file = tmp_path / "state.pt"
    first, optimizer = new()
    learn(TimedRun(file, 0, optimizer, steps=40, warm_up=25), first, until=16)
    second, optimizer = new(seed=1)
    run = TimedRun(file, 0, optimizer, steps=40, warm_up=25)
    second.load_state_dict(run.kept["model"])
    assert learn(run, second) == list(range(17, 40))
    for a, b in zip(model.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_saved_after_the_last_step_it_goes_on_with_a_larger_budget(tmp_path):
    model, optimizer = new()
    run = TimedRun(tmp_path / "state.pt", 0, optimizer, steps=5)
    learn(run, model)
    run.save(model=model.state_dict())
    assert list(TimedRun(tmp_path / "state.pt", 0, new()[1], steps=8)) == [5, 6, 7]


def test_it_prints_the_means_of_so_many_steps(tmp_path, capsys):
    run = TimedRun(tmp_path / "state.pt", 0, new()[1], steps=5, log_every=2)
    for step in run:
        run.log(loss=torch.tensor(float(step), requires_grad=True), rate=10 * step)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(", ")[0] for line in lines] == ["2 steps", "4 steps"]
    assert [line.split(", ")[2] for line in lines] == ["loss 0.5000 rate 5.0000", "loss 2.5000 rate 25.0000"]


def test_no_minutes_are_no_steps(tmp_path):
    assert list(TimedRun(tmp_path / "state.pt", 0, new()[1])) == []


def test_options():
    parser = argparse.ArgumentParser()
    add_run_options(parser, minutes=5, lr=0.1, batch=3)
    args = parser.parse_args(["--device", "cpu", "--seed", "7"])
    assert (args.minutes, args.lr, args.batch, args.seed, args.bfloat16) == (5, 0.1, 3, 7, False)
    assert args.device == torch.device("cpu")
    assert isinstance(parser.parse_args([]).device, torch.device)
