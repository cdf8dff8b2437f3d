"""`omnifeed logs`: what servers logged, on its way to an object store and from there to the gate."""

from __future__ import annotations

import signal
import threading

import click

from omnifeed.errors import UnavailableError
from omnifeed.home import Home


@click.group(name="logs")
def logs_group() -> None:
    """Send what servers logged to an object store, or bring it from there; see docs/serving-operations.md."""


@logs_group.command()
@click.option("--to", required=True, help="Folder of a store, for example s3://bucket/logs.")
@click.option("--every", type=float, help="Go on, with so many seconds between; default: once.")
@click.option("--remove", is_flag=True, help="Delete files that were sent whole and that no server holds any more.")
def ship(to: str, every: float | None, remove: bool) -> None:
    """Send what is new. Safe to stop and to repeat at any moment; SIGTERM sends what there is and ends."""
    from omnifeed.experiment.shipping import Shipper

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    shipper: Shipper | None = None
    while True:
        last = every is None or stop.is_set()
        try:
            shipper = shipper or Shipper(Home.from_env().experiments, to)
            sent = shipper.ship(remove)
            if sent or every is None:
                click.echo(f"{sent:,} bytes sent.")
        except UnavailableError as error:
            if last:
                raise
            click.echo(str(error), err=True)
        if last:
            return
        stop.wait(every)


@logs_group.command()
@click.option("--from", "source", required=True, help="Where servers ship to.")
def fetch(source: str) -> None:
    """Bring what was shipped into this home; then `omnifeed gate` reads it."""
    from omnifeed.experiment.shipping import fetch as bring

    click.echo(f"{bring(source, Home.from_env().experiments):,} bytes fetched.")
