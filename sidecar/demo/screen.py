"""What the demonstration shows: the claims and whether they held, an answer as it comes.

The one module of it that knows how a terminal is written to; what is claimed is `show`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

INDENT = "     "


@dataclass(slots=True)
class Results:
    """What was claimed, and whether it held."""

    rows: list[tuple[bool, str, str]] = field(default_factory=list)
    rotations: int = 0
    pairs: int = 0

    def add(self, held: bool, claim: str, seen: str) -> None:
        """Note one claim and what was seen of it."""
        self.rows.append((held, claim, seen))

    @property
    def all_held(self) -> bool:
        """Tell whether nothing failed."""
        return all(held for held, _, _ in self.rows)


class TokenPrinter:
    """Prints an answer as it comes, broken into lines, with news between the words."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._column = 0

    def word(self, text: str) -> None:
        """Print one word."""
        if self._column + len(text) > min(self._console.width, 100) - len(INDENT):
            self.end_line()
        if not self._column:
            self._console.print(INDENT, end="")
        self._console.print(text, end="", style="italic", markup=False)
        self._column += len(text)

    def news(self, text: str) -> None:
        """Print a line of its own between the words."""
        self.end_line()
        self._console.print(f"  {text}")

    def end_line(self) -> None:
        """Finish the line that was begun."""
        if self._column:
            self._console.print()
        self._column = 0


def opening(console: Console) -> None:
    """Say what this is, and what of it is only for show."""
    console.rule("[bold]spiffe-sidecar[/bold] demonstration", align="left")
    console.print("traefik (mTLS client)  ->  spiffe-sidecar  ->  model server (plain, loopback)")
    console.print("                                ^ SVIDs from an embedded agent\n")
    console.print(
        "[bold yellow]EMBEDDED AGENT: FOR DEMONSTRATION ONLY.[/bold yellow] "
        "It attests nobody and\nsigns for whoever asks.\n"
    )


def act(console: Console, number: int, title: str) -> None:
    """Begin an act."""
    console.print(f"[bold cyan]{number}[/bold cyan]  [bold]{title}[/bold]")


def summary(console: Console, results: Results, seconds: float) -> None:
    """Show every claim with its check, and the verdict."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for _ in range(3):
        table.add_column(overflow="fold")
    for held, claim, seen in results.rows:
        table.add_row("[green]ok[/green]" if held else "[bold red]FAILED[/bold red]", claim, seen)
    console.rule("[bold]Summary[/bold]", align="left")
    console.print(table)
    verdict = "[green]all of it held[/green]" if results.all_held else "[red]it did not hold[/red]"
    console.print(f"\n{verdict}, in {seconds:.0f} s\n")
