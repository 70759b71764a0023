"""Local page of runs, which a browser on this machine refreshes by server-sent events."""

from __future__ import annotations

import hmac
import json
import re
import secrets
import socketserver
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import cast

from rldistill.core.errors import ConfigError, error_text
from rldistill.reporting.charts import colors_of, templates
from rldistill.reporting.watch import REFRESH_S, RunReader, RunStatus, task_text

ADDRESS, PATIENCE_S = "127.0.0.1", 10
LOCAL_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?")
"""Headers `Host` of a browser on this machine, also through a forwarded port; other names are attacks."""
PARTS = ("state", "tasks", "curves", "evaluation", "log")
CONTENT = {"watch.css": "text/css", "watch.js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class WatchServer(ThreadingHTTPServer):
    """Server of the page on the loopback interface, behind a random token.

    Raises:
        ConfigError: The port cannot be used.
    """

    daemon_threads = True

    def __init__(self, readers: Sequence[RunReader], port: int = 0) -> None:
        self.readers, self.token = readers, secrets.token_urlsafe(24)
        self._lock, self._read_at, self._parts = threading.Lock(), -REFRESH_S, dict[str, str]()
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            raise ConfigError(
                f"--port: {port} cannot be used ({error_text(error)}). Choose another, or leave it out for a free one."
            ) from None

    def server_bind(self) -> None:
        """Bind the port without a look-up of the machine's name, which can take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = ADDRESS, self.server_address[1]

    def handle_error(self, request: object, client_address: object) -> None:
        """Print a defect, but no connection that a browser has closed."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{ADDRESS}:{self.server_port}/{self.token}/"

    @property
    def names(self) -> list[str]:
        """Titles of the runs: the names of their folders, or their paths if two have the same name."""
        names = [reader.run.resolve().name for reader in self.readers]
        return names if len({*names}) == len(names) else [str(reader.run) for reader in self.readers]

    def parts(self) -> dict[str, str]:
        """Return the parts of the page by their id, read at most once in `REFRESH_S`."""
        with self._lock:
            if time.monotonic() - self._read_at >= REFRESH_S:
                self._parts = {}
                for number, (reader, name) in enumerate(zip(self.readers, self.names, strict=True)):
                    self._parts |= {f"run-{number}-{part}": html for part, html in _render(reader, name).items()}
                self._read_at = time.monotonic()
            return self._parts

    def page(self) -> str:
        """Return the whole page."""
        return templates().get_template("watch.html.jinja").render(names=self.names, parts=self.parts())


def _render(reader: RunReader, name: str) -> dict[str, str]:
    """Return the parts of a run as HTML."""
    try:
        status = reader.status()
        colors = colors_of(status.students) | {"teacher": "teacher"}
        drawn = [(found.title, found.chart(colors)) for found in status.curves]
    except Exception as error:  # no file of one run may end the page of the others
        status, drawn = RunStatus(reader.run, "idle", f"Its files cannot be shown ({error_text(error)})."), []
    macros = templates().get_template("watched.html.jinja", globals={"task_text": task_text}).module
    return {part: getattr(macros, part)(status, name, drawn).strip() for part in PARTS}


class _Handler(BaseHTTPRequestHandler):
    """Requests of the page, its style and script, and its events; nothing else has an address."""

    server_version, sys_version, timeout = "rldistill", "", PATIENCE_S

    def do_GET(self) -> None:
        """Answer a request."""
        server = cast(WatchServer, self.server)
        token, _, name = self.path.partition("?")[0].removeprefix("/").partition("/")
        if LOCAL_HOST.fullmatch(self.headers.get("Host", "")) is None:
            self._send(403, "text/plain", "Open the address that `rldistill watch` printed.")
        elif not hmac.compare_digest(token.encode(errors="replace"), server.token.encode()):
            self._send(403, "text/plain", "Open the whole address that `rldistill watch` printed, with its token.")
        elif name == "":
            self._send(200, "text/html", server.page())
        elif name in CONTENT:
            self._send(200, CONTENT[name], templates().get_template(name).render())
        elif name == "events":
            with suppress(OSError):  # the browser closed the page
                self._send_events(server)
        else:
            self._send(404, "text/plain", "There is no such page.")

    def _send(self, status: int, kind: str, text: str) -> None:
        content = text.encode()
        self._send_headers(status, kind, {"Content-Length": str(len(content))})
        self.wfile.write(content)

    def _send_headers(self, status: int, kind: str, more: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": f"{kind}; charset=utf-8", **more, **HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send_events(self, server: WatchServer) -> None:
        """Send the parts that changed, or a comment by which a closed connection is noticed, until it is closed."""
        self._send_headers(200, "text/event-stream", {})
        sent = dict[str, str]()
        while True:
            parts = server.parts()
            changed = {key: html for key, html in parts.items() if sent.get(key) != html}
            self.wfile.write(f"data: {json.dumps(changed)}\n\n".encode() if changed else b":\n\n")
            sent = parts
            time.sleep(REFRESH_S)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""
