"""`omnifeed ui`: the local page of what users see."""

from __future__ import annotations

import click

from omnifeed.home import Home


@click.command(name="ui")
@click.option("--url", default="127.0.0.1:8001", show_default=True, help="Triton's gRPC address.")
@click.option("--features", default="127.0.0.1:6566", show_default=True, help="The feature server's address.")
@click.option("--port", default=8080, show_default=True, help="Port of the page, on this machine alone.")
@click.option(
    "--now",
    type=int,
    help="Ask as of this time, UTC microseconds; needs a simulated clock, and is then the catalogue's by default.",
)
def ui_command(url: str, features: str, port: int, now: int | None) -> None:
    """Show what users see: champion and challenger side by side, on a page of this machine.

    Needs a running server (omnifeed serve). Its requests are logged nowhere.
    """
    from omnifeed.serving.processes import free_ports
    from omnifeed.serving.ui.app import Settings, serve

    free_ports((port,))
    click.echo(f"http://127.0.0.1:{port} shows what {url} answers; Ctrl-C stops.")
    serve(Settings(home=Home.from_env(), url=url, features=features, now=now), port)
