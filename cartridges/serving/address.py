"""The address of a server, taken."""

import socket

from cartridges.errors import InputError


def listen(host: str, port: int) -> socket.socket:
    """A socket at the address; port 0 takes a free one. Raises InputError where that is not to be had."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise InputError(f"given the host {host!r}, which is not known here; use 127.0.0.1") from error
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(address)
    except OSError as error:
        found.close()
        why = error.strerror or str(error)
        raise InputError(f"cannot listen at {host} port {port} ({why}); give another with --port, or 0") from error
    return found
