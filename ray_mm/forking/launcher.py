"""Asks the fork server for a worker process and stands for it until it ends. Only what starts fast is imported.

Called as ``launcher.py SOCKET PYTHON ARGUMENT…``, where PYTHON with the arguments is the process that is asked for.
"""

import _socket
import marshal
import os
import signal
import sys


def ask(path: str, argv: list[str]) -> int:
    """The exit status of a process that the server forks.

    Raises:
        OSError: there is no server, or it does not fork.
    """
    server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    server.connect(path)
    mask = [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())]
    order = marshal.dumps((argv, dict(os.environ), os.getcwd(), mask))  # noqa: PTH109 – pathlib takes its time to import
    files = b"".join(number.to_bytes(4, sys.byteorder) for number in (0, 1, 2))
    server.sendmsg([len(order).to_bytes(8, "little")], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, files)])
    server.sendall(order)
    if server.recv(1) != b"+":
        raise OSError
    # The server says how it ended; if the server ends first, so does this, and the process goes on.
    return int.from_bytes(server.recv(1) or b"\0", "little")


if __name__ == "__main__":
    socket_path, python, *arguments = sys.argv[1:]
    try:
        status = ask(socket_path, arguments)
    except OSError:
        os.execv(python, [python, *arguments])
    os._exit(status)
