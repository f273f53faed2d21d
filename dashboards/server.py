"""Serving the app to this machine only, and the headers that keep other pages out.

- Host allow-list: a request must name this server by a loopback name and its own port. Otherwise a page on
  another site could point its own name at 127.0.0.1 and read the answers (DNS rebinding).
- Origin: a request that changes something and names an origin must name this server.
- Content-Security-Policy: scripts of this server and the renderer's own inline ones, by hash; no other host.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import flask

from dashboards.pages.run import FILES
from workbench.errors import RunError, WorkbenchError

if TYPE_CHECKING:
    from waitress.server import BaseWSGIServer, MultiSocketServer

    from dashboards.state import AppState

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
THREADS = 8
LARGEST_REQUEST = 8_000_000
"""Bytes; a form is far smaller."""


def is_loopback(host: str) -> bool:
    """Whether a name given as `--host` is this machine's own."""
    return host in (*LOOPBACK, "::1")


def allowed_hosts(port: str | int) -> set[str]:
    """The values of the Host header that a server on `port` answers."""
    return {f"{name}:{port}" for name in LOOPBACK} | (set(LOOPBACK) if str(port) == "80" else set())


def secure(server: flask.Flask, *, scripts: Sequence[str] = ()) -> None:
    """Refuse foreign hosts and origins; add security headers to every answer."""
    policy = "; ".join(
        [
            "default-src 'self'",
            f"script-src 'self' {' '.join(scripts)}".strip(),
            "style-src 'self' 'unsafe-inline'",  # Mantine, Plotly and AG Grid set styles on elements
            "img-src 'self' data: blob:",
            "font-src 'self' data:",
            "connect-src 'self'",
            "object-src 'none'",
            "base-uri 'none'",
            "form-action 'self'",
            "frame-ancestors 'self'",
        ]
    )

    @server.before_request
    def check_host() -> flask.Response | None:
        allowed = allowed_hosts(flask.request.environ.get("SERVER_PORT", ""))
        if flask.request.headers.get("Host", "") not in allowed:
            return flask.Response(
                "This server answers to its own loopback address only.\n", 403, mimetype="text/plain"
            )
        origin = flask.request.headers.get("Origin")
        if flask.request.method not in ("GET", "HEAD") and origin and urlsplit(origin).netloc not in allowed:
            return flask.Response("Requests from other sites are refused.\n", 403, mimetype="text/plain")
        return None

    @server.after_request
    def add_headers(response: flask.Response) -> flask.Response:
        response.headers["Content-Security-Policy"] = policy
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["X-Frame-Options"] = "SAMEORIGIN"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        return response


def register_files(server: flask.Flask, state: AppState) -> None:
    """`/files/<run>/<name>`: a few files of a run, as downloads."""

    @server.get("/files/<run_id>/<name>")
    def run_file(run_id: str, name: str) -> flask.Response:
        if name not in FILES:
            flask.abort(404)
        try:
            file = state.run(run_id).path / name
        except RunError:
            flask.abort(404)
        if not file.is_file():
            flask.abort(404)
        return flask.send_file(file, as_attachment=True, download_name=f"{run_id}-{name}")


def make_server(app: Any, host: str = "127.0.0.1", port: int = 8050) -> BaseWSGIServer | MultiSocketServer:
    """A waitress server that listens already; `run()` serves, `close()` ends it. Port 0 takes a free one.

    Raises:
        WorkbenchError: a host that others can reach, or a port that cannot be had.
    """
    from waitress.server import create_server

    if not is_loopback(host):
        raise WorkbenchError(
            f"The dashboard serves this machine only, not {host!r}: it has no login, so whoever reaches it "
            "could run models and read your runs. Use --host 127.0.0.1, and from elsewhere an SSH tunnel: "
            f"ssh -L {port}:127.0.0.1:{port} THIS-MACHINE."
        )
    try:
        return create_server(
            app.server,
            host=host.strip("[]"),
            port=port,
            threads=THREADS,
            ident=None,
            max_request_body_size=LARGEST_REQUEST,
            clear_untrusted_proxy_headers=True,
        )
    except (OSError, OverflowError, ValueError) as error:
        reason = "it is in use" if getattr(error, "errno", None) == errno.EADDRINUSE else str(error)
        raise WorkbenchError(
            f"Cannot listen on {host}:{port}: {reason}. Choose another with --port."
        ) from error
