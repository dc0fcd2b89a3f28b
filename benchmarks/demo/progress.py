# SPDX-License-Identifier: Apache-2.0
"""What the demonstration is doing, while it waits for it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


@contextmanager
def working(what: str, console: Console) -> Iterator[Callable[[str], None]]:
    """Show `what`, the time since then, and how far it is, which the yielded function takes; in a log `what` alone."""
    if not console.is_terminal:
        console.print(what, highlight=False, soft_wrap=True)
        yield lambda text: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda text: progress.update(task, description=f"{what}: {text}")
