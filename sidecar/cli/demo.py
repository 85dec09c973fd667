"""`demo`: the main job on embedded parts."""

from __future__ import annotations

import signal
import sys

import click
import trio

from sidecar.demo.show import show


@click.command("demo")
@click.option("--keep", is_flag=True, help="Leave it running and print commands to try.")
def demo_command(keep: bool) -> None:
    """Show the main job on embedded parts, in under 30 seconds."""
    sys.exit(trio.run(_show, keep))


async def _show(keep: bool) -> int:
    """Return the exit status; a signal ends all parts, for none of them may be left running."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    status = 0
    with trio.open_signal_receiver(*heard) as signals:
        async with trio.open_nursery() as nursery:

            async def end_on_signal() -> None:
                nonlocal status
                status = 128 + await anext(signals)
                nursery.cancel_scope.cancel()

            nursery.start_soon(end_on_signal)
            status = 0 if await show(keep) else 1
            nursery.cancel_scope.cancel()
    return status
