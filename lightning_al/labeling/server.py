"""Serve the page to label on, on the loopback address of this machine only."""

import secrets
import socket
from collections.abc import Callable

from lightning_al.labeling.content import Reader
from lightning_al.labeling.session import LabelingSession

ADDRESS = "127.0.0.1"
# Bytes of randomness in the token: nobody guesses it.
TOKEN_BYTES = 24


def serve(
    session: LabelingSession, read: Reader, started: Callable[[str], None], *, port: int = 0, by: str = ""
) -> None:
    """Serve the page until the process gets SIGINT or SIGTERM.

    Args:
        session: The queue and its answers.
        read: Returns the content of a sample.
        started: Called with the address of the page, once it can be opened.
        port: The port; 0 takes a free one.
        by: The name of the person, until the page has another one.

    Raises:
        ModuleNotFoundError: If starlette or uvicorn is missing.
        OSError: If another program uses the port.
        KeyboardInterrupt: After SIGINT.

    """
    try:
        import uvicorn

        from lightning_al.labeling.app import make_app
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'The page to label on needs {error.name}: pip install "lightning_al[label]".', name=error.name
        ) from error
    token = secrets.token_urlsafe(TOKEN_BYTES)
    config = uvicorn.Config(
        make_app(session, read, token, by),
        ws="none",
        lifespan="off",
        log_config=None,  # errors go to stderr, and the logging of this process stays as it is
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    try:
        server = socket.create_server((ADDRESS, port))
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}: {ADDRESS}:{port}; choose another port (`--port`)") from error
    with server:
        started(f"http://{ADDRESS}:{server.getsockname()[1]}/#{token}")
        uvicorn.Server(config).run(sockets=[server])
