"""The loss curve of a run: as lines of text, and as a PNG (with matplotlib, of the extra `tune`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from brise.errors import MissingExtraError
from brise.files.atomic import output_errors

Points = Sequence[tuple[int, float]]

WIDTH, HEIGHT = 64, 12  # characters of the plot
_TRAIN, _HELD_OUT = ".", "o"


@dataclass(frozen=True)
class Curve:
    """The losses of steps and of evaluations, in nats a token."""

    train: Points
    held_out: Points

    @classmethod
    def of(cls, log: Iterable[Mapping[str, object]]) -> Curve:
        """The curve of a run's log; losses that were not finite have no point."""
        train, held_out = [], []
        for line in log:
            step, loss, held_out_loss = line.get("step"), line.get("loss"), line.get("held_out")
            if isinstance(step, int) and isinstance(loss, float):
                train.append((step, loss))
            if isinstance(step, int) and isinstance(held_out_loss, float):
                held_out.append((step, held_out_loss))
        return cls(train, held_out)

    def lines(self) -> list[str]:
        """A plot: `.` is the mean loss of a column's steps, `o` an evaluation."""
        if not self.train:
            return []
        last = max(step for step, _ in (*self.train, *self.held_out))
        columns = _means(self.train, last)
        values = [*columns.values(), *(loss for _, loss in self.held_out)]
        low, high = min(values), max(values)
        cells = [[" "] * WIDTH for _ in range(HEIGHT)]
        for column, loss in columns.items():
            cells[_row(loss, low, high)][column] = _TRAIN
        for step, loss in self.held_out:
            cells[_row(loss, low, high)][_column(step, last)] = _HELD_OUT
        labels = {0: high, HEIGHT // 2: low + (high - low) * (HEIGHT - 1 - HEIGHT // 2) / (HEIGHT - 1), HEIGHT - 1: low}
        plot = [f"{f'{labels[row]:.3f}' if row in labels else '':>9} |{''.join(line).rstrip()}"
                for row, line in enumerate(cells)]
        legend = f"{_TRAIN} loss" + (f"   {_HELD_OUT} held out" if self.held_out else "")
        return [*plot, f"{'':>9} +{'-' * WIDTH}", f"{'step':>9}  1{last:>{WIDTH - 1}}", f"{'':>11}{legend}"]

    def write_png(self, path: Path, title: str) -> None:
        """Writes the plot as a picture."""
        try:
            # A second of start-up that only the end of a run needs.
            from matplotlib.figure import Figure  # noqa: PLC0415
        except ImportError as error:
            raise MissingExtraError("matplotlib", "tune", "a loss curve as PNG") from error
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.add_subplot(xlabel="step", ylabel="loss (nats a token)", title=title)
        axes.plot([step for step, _ in self.train], [loss for _, loss in self.train], linewidth=0.8, alpha=0.5,
                  color="tab:blue", label="training")
        axes.plot(*zip(*_smooth(self.train), strict=True), color="tab:blue", label="training, smoothed")
        if self.held_out:
            axes.plot(*zip(*self.held_out, strict=True), marker="o", color="tab:orange", label="held out")
        losses = [loss for _, loss in (*self.train, *self.held_out)]
        if losses and min(losses) > 0 and max(losses) > 10 * min(losses):
            axes.set_yscale("log")  # otherwise all but the first steps would lie on the axis
        axes.legend()
        axes.grid(alpha=0.3)
        with output_errors(path):
            figure.savefig(path, format="png")


def _means(points: Points, last: int) -> dict[int, float]:
    columns: dict[int, list[float]] = {}
    for step, loss in points:
        columns.setdefault(_column(step, last), []).append(loss)
    return {column: sum(losses) / len(losses) for column, losses in columns.items()}


def _column(step: int, last: int) -> int:
    return min(max(step - 1, 0) * WIDTH // max(last, 1), WIDTH - 1)


def _row(loss: float, low: float, high: float) -> int:
    return HEIGHT - 1 - round((loss - low) / (high - low) * (HEIGHT - 1)) if high > low else HEIGHT - 1


def _smooth(points: Points) -> list[tuple[int, float]]:
    """An exponential mean over about a twentieth of the run, unbiased at its beginning."""
    keep = 1.0 - 1.0 / max(len(points) / 20, 1.0)
    smooth, total, weight = [], 0.0, 0.0
    for step, loss in points:
        total, weight = keep * total + loss, keep * weight + 1.0
        smooth.append((step, total / weight if math.isfinite(total) else loss))
    return smooth
