"""`kvmfs warm`: compile the vCPU into the cache, with a progress bar."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


def warm(jobs: int | None = None) -> None:
    """Fill the jit cache. Without a terminal one line per group is printed instead of a bar."""
    from kvmfs.jit import build

    console = Console()
    columns = (
        TextColumn("[bold]compiling the vCPU[/bold]"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[group]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, group="")

        def progress(group: str, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, group=group)
            if not console.is_terminal and group:
                console.print(f"{done}/{total} {group}", highlight=False)

        build.warm(progress, jobs)
    console.print(f"ready: {build.cache.base_dir()}", highlight=False, soft_wrap=True)
