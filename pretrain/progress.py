"""The progress bar of a training, on standard error, where that is a terminal."""

from contextlib import suppress

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress:
    """A bar over the steps of a run, with the newest loss; silent where standard error is no terminal."""

    def __init__(self, steps: int, start: int) -> None:
        console = Console(stderr=True)
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
        )
        self._bar = RichProgress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("training", total=steps, completed=start, loss="")
        self._bar.start()

    def advance(self, step: int) -> None:
        """Moves the bar to `step`."""
        self._bar.update(self._task, completed=step)

    def show(self, loss: float) -> None:
        """Shows a loss beside the bar."""
        self._bar.update(self._task, loss=f"loss {loss:.4f}")

    def close(self) -> None:
        """Leaves the bar as it stands."""
        with suppress(OSError):  # the terminal is gone
            self._bar.stop()
