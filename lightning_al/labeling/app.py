"""The page to label on as an application of Starlette, and its safeguards."""

import secrets
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lightning_al.labeling.content import Reader
from lightning_al.labeling.session import LabelingSession

# A page of another site that resolves to this machine sends the name of that site.
HOSTS = ["127.0.0.1", "localhost"]
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob:; "
    "media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
PAGE = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}


class _Guard:
    """Answer requests without the token by status 401, except for the files of the page, and set all headers.

    The page has the token behind the `#` of its address, which a browser sends to nobody, and passes it in a header,
    which no other site can make a browser do; a cookie would go to every server on this machine.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.expected = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        given = Headers(scope=scope).get("authorization", "").encode()
        if scope["path"].startswith("/api/") and not secrets.compare_digest(given, self.expected):
            refusal = PlainTextResponse("This window belongs to a server that has ended: open the address again.", 401)
            await refusal(scope, receive, send_with_headers)
        else:
            await self.app(scope, receive, send_with_headers)


class _Endpoints:
    """What the page asks for."""

    def __init__(self, session: LabelingSession, read: Reader, by: str) -> None:
        self.session, self.read, self.by = session, read, by

    def task(self, request: Request) -> Response:
        return JSONResponse({**self.session.task(), "by": self.by})

    def state(self, request: Request) -> Response:
        return self._state(request.query_params)

    def summary(self, request: Request) -> Response:
        return JSONResponse(self.session.summary())

    def content(self, request: Request) -> Response:
        content = self.read(self.session.sample(request.path_params["index"]))
        return Response(content.data, media_type=content.media_type)

    async def answer(self, request: Request) -> Response:
        values = await _body_of(request)

        def add() -> Response:
            accepted = self.session.answer(
                values["index"], values.get("label"), by=values.get("by", ""), seconds=values.get("seconds")
            )
            return self._state(values, accepted=accepted)

        return await run_in_threadpool(add)

    async def undo(self, request: Request) -> Response:
        values = await _body_of(request)

        def withdraw() -> Response:
            self.session.undo(values["index"], str(values["window"]), by=values.get("by", ""))
            return self._state(values)

        return await run_in_threadpool(withdraw)

    def _state(self, values: Mapping[str, Any], **more: Any) -> Response:
        state = self.session.state(str(values.get("window")), values.get("order") == "class")
        return JSONResponse({**state, **more})


def make_app(session: LabelingSession, read: Reader, token: str, by: str = "") -> Starlette:
    """Return the application.

    Args:
        session: The queue and its answers.
        read: Returns the content of a sample.
        token: What a request has to know.
        by: The name of the person, until the page has another one.

    """
    endpoints = _Endpoints(session, read, by)
    folder = files("lightning_al.labeling") / "page"
    static = [
        Route(path, _constant((folder / name).read_bytes(), media_type)) for path, (name, media_type) in PAGE.items()
    ]
    return Starlette(
        routes=[
            *static,
            Route("/favicon.ico", _constant(b"", "image/png")),
            Route("/api/task", endpoints.task),
            Route("/api/state", endpoints.state),
            Route("/api/summary", endpoints.summary),
            Route("/api/content/{index:int}", endpoints.content),
            Route("/api/answer", endpoints.answer, methods=["POST"]),
            Route("/api/undo", endpoints.undo, methods=["POST"]),
        ],
        middleware=[
            Middleware(_Guard, token=token),
            Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False),
        ],
        exception_handlers={ValueError: _explain, OSError: _explain},
    )


def _constant(content: bytes, media_type: str) -> Any:
    return lambda request: Response(content, media_type=media_type)


async def _body_of(request: Request) -> dict[str, Any]:
    values = await request.json()
    if not isinstance(values, dict) or type(values.get("index")) is not int or "window" not in values:
        raise ValueError("Expected the fields `index` and `window`.")
    return values


async def _explain(request: Request, error: Exception) -> Response:
    """Answer by the message of an error, which the page displays beside the sample; nothing was written then."""
    return PlainTextResponse(str(error), 400 if isinstance(error, ValueError) else 500)
