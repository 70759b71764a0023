"""`rldistill watch`: the state of runs, on a local page or in the terminal."""

from __future__ import annotations

import contextlib
import getpass
import os
import platform
import sys
import tempfile
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from rldistill.cli.completion import complete_started_run


def watch(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Folders of runs.", show_default=False, autocompletion=complete_started_run),
    ],
    text: Annotated[bool, typer.Option("--text", help="Show it in the terminal, until no run goes on.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port of the page; 0 takes a free one.")] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Print the address only.")] = False,
) -> None:
    """Show stage, progress, curves and results of runs, while they go on or afterwards, on a page of this machine."""
    from rldistill.reporting.watch import open_runs, show_in_terminal
    from rldistill.reporting.watch_page import ADDRESS, WatchServer

    readers = open_runs(runs)
    if text:
        show_in_terminal(readers)
        return
    with WatchServer(readers, port) as server, contextlib.ExitStack() as stack:
        typer.echo(f"page: {server.url} (Ctrl-C ends the page, not the run)")
        has_display = sys.platform == "darwin" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
        if no_browser or not has_display or not _open(server.url, stack):
            forward = f"ssh -N -L {server.server_port}:{ADDRESS}:{server.server_port} {_login()}"
            typer.echo(f"from another machine: {forward}, then open the same address there")
        sys.stdout.flush()
        server.serve_forever()


def _open(url: str, stack: contextlib.ExitStack) -> bool:
    """Open an address in a browser, by a file that only this user reads; all users can list arguments of processes."""
    if "microsoft" in platform.release().lower():  # a browser of Windows cannot read the file; one user is there
        return webbrowser.open(url)
    forward = f'<meta http-equiv="refresh" content="0; url={url}">'
    try:
        page = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rldistill-"))) / "watch.html"
        page.write_text(f"<!doctype html><title>rldistill</title>{forward}\n", encoding="utf-8")
    except OSError:  # a full disk, or no folder for temporary files
        return False
    return webbrowser.open(page.as_uri())


def _login() -> str:
    """Return the name of the user and the address of this machine, for ssh."""
    client = os.environ.get("SSH_CONNECTION", "").split()
    host = client[2] if len(client) == 4 else platform.node()
    try:
        return f"{getpass.getuser()}@{host}"
    except (OSError, KeyError):  # a user without a name
        return host
