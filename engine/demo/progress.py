"""The demo's progress on a terminal: one line per step, with a spinner while it runs and ✓ or ✗ when it has ended."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn

__all__ = ["Steps"]


class Steps:
    """Steps that follow one another. Use as a context manager; a step that is running at its end has failed."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text=""),
            TextColumn("{task.fields[mark]}{task.description}"),
            TextColumn("{task.fields[detail]}", style="cyan"),
            console=console,
        )
        self._title = ""
        self._running = False

    def show(self, title: str, detail: str = "") -> None:
        """Show the step `title` with `detail`. It begins unless it is the running one; another that runs has then failed."""
        if self._running and title != self._title:
            self.end(False)
        if not self._running:
            self._task = self._progress.add_task(title, total=1, mark="", detail=detail)
            self._title = title
            self._running = True
        self._progress.update(self._task, detail=detail)

    def end(self, passed: bool, detail: str | None = None) -> None:
        """End the running step; `detail` replaces the one it has."""
        mark = "[green]✓[/] " if passed else "[red]✗[/] "
        self._progress.update(self._task, completed=1, mark=mark)
        if detail is not None:
            self._progress.update(self._task, detail=detail)
        self._running = False

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._running:
            self.end(False)
        self._progress.stop()
