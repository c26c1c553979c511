"""What a training run shows and leaves behind: progress lines, `metrics.jsonl`, the curves, TensorBoard, wandb.

`metrics.jsonl` has one object every `log_every` steps (`"kind": "train"`) and one for each evaluation
(`"kind": "evaluation"`); a resumed run drops what came after its checkpoint and goes on in the same file.
"""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from reinforce.config import ConfigError, StudentConfig
from reinforce.formatting import format_counts, format_seconds
from reinforce.student.meter import WAITING_SHARE

METRICS_FILE = "metrics.jsonl"
_PLAIN_INTERVAL_S = 10.0


class Journal:
    """Shows and records a run. Use as a context manager; only the first process of a run has one."""

    def __init__(self, folder: Path, config: StudentConfig, num_steps: int, first_step: int, console: Console) -> None:
        self.folder = folder
        self.console = console
        self._num_steps = num_steps
        self._first_step = first_step
        self._start_s = time.monotonic()
        self._shown_s = 0.0
        self._metrics = _open_metrics(folder / METRICS_FILE, first_step)
        self._loggers = [_LOGGERS[name](folder, config) for name in config.loggers]
        self._live = Live(console=console, refresh_per_second=2, transient=True) if console.is_terminal else None

    def __enter__(self) -> "Journal":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
        self._metrics.close()
        for logger in self._loggers:
            logger.close()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._start_s

    def train(self, step: int, figures: dict[str, Any], left_out: Counter[str]) -> None:
        """Records the figures of the steps since the last call and what was left out in all, and shows them."""
        self._record({"kind": "train", "step": step, **figures, "left_out": dict(+left_out)})
        left_s = self.elapsed_s / (step - self._first_step) * (self._num_steps - step)
        limit = " (the readers are the limit)" if figures["wait_share"] >= WAITING_SHARE else ""
        parts = [
            f"step {step:,}/{self._num_steps:,}",
            f"loss {figures['loss']:.3f}",
            f"{figures['samples_per_s']:,.0f} samples/s",
            f"waiting for data {figures['wait_share']:.0%}{limit}",
            f"{format_seconds(left_s)} left",
        ]
        line = ", ".join(parts) + (f"; {format_counts(left_out)}" if +left_out else "")
        if self._live:
            self._live.update(Text(line))
        elif self.elapsed_s - self._shown_s >= _PLAIN_INTERVAL_S or step == self._num_steps:
            self._shown_s = self.elapsed_s
            self.line(line)

    def evaluation(self, step: int, figures: dict[str, float], left_out: Counter[str]) -> None:
        """Records and shows an evaluation, and how many images of any modality it left out."""
        self._record({"kind": "evaluation", "step": step, **figures, "left_out": dict(+left_out)})
        shown = {name: f"{value:,}" if isinstance(value, int) else f"{value:.3f}" for name, value in figures.items()}
        line = f"step {step:,}: " + ", ".join(f"{name} {text}" for name, text in shown.items())
        self.line(line + (f"; {format_counts(left_out)}" if +left_out else ""))

    def line(self, text: str) -> None:
        """A message of its own."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _record(self, row: dict[str, Any]) -> None:
        self._metrics.write(json.dumps(row) + "\n")
        self._metrics.flush()
        for logger in self._loggers:
            logger.log(row)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's `metrics.jsonl`."""
    return [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]


def _open_metrics(path: Path, first_step: int) -> Any:
    """The file, holding the rows up to `first_step` only."""
    rows = [row for row in read_metrics(path.parent) if row["step"] <= first_step] if path.exists() else []
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
    partial.replace(path)
    return path.open("a")


class _TensorBoard:
    def __init__(self, folder: Path, config: StudentConfig) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                f"student.loggers: tensorboard does not load ({error}); pip install tensorboard"
            ) from None
        self._writer = SummaryWriter(str(folder / "tensorboard"))  # type: ignore[no-untyped-call]

    def log(self, row: dict[str, Any]) -> None:
        for name, value in _scalars(row).items():
            self._writer.add_scalar(f"{row['kind']}/{name}", value, row["step"])  # type: ignore[no-untyped-call]

    def close(self) -> None:
        self._writer.close()  # type: ignore[no-untyped-call]


class _Wandb:
    def __init__(self, folder: Path, config: StudentConfig) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(f"student.loggers: wandb does not load ({error}); pip install wandb") from None
        self._run = wandb.init(project="reinforce", dir=str(folder), config=config.model_dump(mode="json"))

    def log(self, row: dict[str, Any]) -> None:
        self._run.log({f"{row['kind']}/{name}": value for name, value in _scalars(row).items()}, step=row["step"])

    def close(self) -> None:
        self._run.finish()


_LOGGERS: dict[str, Any] = {"tensorboard": _TensorBoard, "wandb": _Wandb}


def _scalars(row: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if isinstance(value, int | float) and name != "step"}
