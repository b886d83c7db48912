"""Running the page: on this machine, for this machine, without a word to any other."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from tfclip.errors import MissingExtraError

if TYPE_CHECKING:
    import gradio
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

Result = TypeVar("Result")

LOOPBACK = ("127.0.0.1", "localhost", "::1")

_FONTS = ("system-ui", "sans-serif")  # of the reader's own machine

_logger = logging.getLogger(__name__)

# The browser itself refuses what would come from, or go to, anywhere else.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; object-src 'none'; "
    "form-action 'self'; base-uri 'self'"
)


def check_gradio() -> Any:
    """Return Gradio, imported so that it never reports who uses it.

    Raises:
        MissingExtraError: It is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported, and later
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        return importlib.import_module("gradio")
    except ImportError as error:
        raise MissingExtraError(
            "the app needs Gradio; install it with: pip install 'tfclip[app]'"
        ) from error


def serve(
    app: gradio.Blocks,
    host: str = "127.0.0.1",
    port: int | None = None,
    *,
    max_upload: str = "500mb",
    wait: bool = True,
) -> str:
    """Run the page until it is interrupted.

    Nothing is reported, shared or kept in the browser, and the browser is told to fetch nothing
    from elsewhere. Uploads are deleted an hour later, and when the app ends.

    Args:
        app: What ``build_app`` returns.
        host: Address to listen on. ``"0.0.0.0"`` lets in everybody who can reach this machine.
        port: Port; None takes the first free one from 7860 on.
        max_upload: The largest file that is taken.
        wait: Return only when interrupted; without, the page runs in a thread until
            ``app.close()``.

    Returns:
        The address of the page.

    Raises:
        OSError: The port is taken.
    """
    gr = check_gradio()

    from starlette.middleware import Middleware

    wanted: dict[str, Any] = {
        "server_name": host,
        "server_port": port,
        "share": False,
        "inbrowser": False,
        "quiet": True,
        "prevent_thread_lock": True,
        "max_file_size": max_upload,
        "enable_monitoring": False,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        "run_history": False,
        "footer_links": [],
        "theme": gr.themes.Default(primary_hue="blue", font=_FONTS, font_mono=_FONTS),
        "app_kwargs": {"middleware": [Middleware(_Policy)]},
    }
    known = inspect.signature(app.launch).parameters  # not every version has all of them
    options = {name: value for name, value in wanted.items() if name in known}
    _, address, _ = in_loop(lambda: app.launch(**options))
    _logger.info("the page is at %s; Ctrl-C ends it", address)
    if wait:
        app.block_thread()
    return address


def in_loop(work: Callable[[], Result]) -> Result:
    """Call a function while an event loop runs, as Gradio's own want it.

    Where none runs, each of them would make one, put it in the place of the thread's and leave it
    open.
    """

    async def call() -> Result:
        return work()

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        loop = asyncio.new_event_loop()
    else:
        return work()
    try:
        return loop.run_until_complete(call())
    finally:
        loop.close()


class _Policy:
    """Add the policy to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ())]
                headers.append((b"content-security-policy", _POLICY.encode()))
                headers.append((b"referrer-policy", b"no-referrer"))
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, send_with_policy)
