"""A proxy before a dashboard that cuts the connection over which a log is followed, again and again."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def cutting(port: int, path: bytes, after_s: float) -> Iterator[tuple[str, list[int]]]:
    """Yields its URL, and a list with an entry for each connection that it has cut.

    Args:
        port: of the dashboard, on this machine.
        path: connections that ask for something with this in their first line are cut.
        after_s: after so long; the first one at once, so that there is one, however short the log is followed.
    """
    cut: list[int] = []
    seen: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listening, contextlib.ExitStack() as stack:

        def serve() -> None:
            with contextlib.suppress(OSError):  # at the end
                while True:
                    client = stack.enter_context(listening.accept()[0])
                    threading.Thread(target=connect, args=(client,), daemon=True).start()

        def connect(client: socket.socket) -> None:
            with contextlib.suppress(OSError), client, socket.create_connection(("127.0.0.1", port)) as server:
                first = client.recv(1 << 16)
                server.sendall(first)
                if path in first.split(b"\r\n", 1)[0]:
                    seen.append(1)
                    after = after_s if len(seen) > 1 else 0
                    timer = threading.Timer(after, lambda: (cut.append(1), close(client), close(server)))
                    timer.daemon = True
                    timer.start()
                back = threading.Thread(target=pump, args=(server, client), daemon=True)
                back.start()
                pump(client, server)
                back.join()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", cut
        close(listening)
        thread.join(10)


def close(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while content := source.recv(1 << 16):
            target.sendall(content)
    close(target)
