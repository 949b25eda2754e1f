"""Which address of this machine others reach, and which port is free on it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Iterator

from hpfwi_cluster.errors import StartFailed

LOOPBACK = "127.0.0.1"

_SIOCGIFADDR = 0x8915
_SOMEWHERE = "198.51.100.1"
"""An address kept for documentation (RFC 5737): a route to it is the default route. Nothing is sent."""

_PORTS = range(20000, 32000)
"""Below the range from which Linux takes the ports of outgoing connections."""


def own_address(interface: str | None = None, toward: str | None = None) -> str:
    """Return the IPv4 address of this machine that other nodes reach.

    interface   of this network interface, such as ib0
    toward      else the one that packets to this address leave from
    raises      StartFailed: the interface has no address

    Without either: what the node's name resolves to, unless that is loopback or not here, as it often is; then the
    address of the default route; then that of the first interface that has one; loopback last.
    """
    if interface is not None:
        found = _address_of(interface)
        if found is None:
            known = ", ".join(name for _, name in socket.if_nameindex())
            raise StartFailed(f"Network interface {interface} has no IPv4 address here; this node has {known}.")
        return found
    if toward is not None:
        return _source_toward(toward) or own_address()
    return next((address for address in _candidates() if _usable(address)), LOOPBACK)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    return host == "localhost" or host == "::1" or host.startswith("127.")


def free_port(host: str, seed: int) -> int:
    """Return a port that is free at an address now: another one for another seed, so that jobs start far apart."""
    for step in range(len(_PORTS)):
        port = _PORTS[(seed + step) % len(_PORTS)]
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise StartFailed(f"No port from {_PORTS.start} to {_PORTS.stop - 1} is free at {host}.")


def answers(host: str, port: int, timeout_s: float) -> bool:
    """Whether something accepts connections there."""
    try:
        socket.create_connection((host, port), timeout=timeout_s).close()
    except OSError:
        return False
    return True


def _candidates() -> Iterator[str]:
    for name in (os.environ.get("SLURMD_NODENAME"), socket.gethostname()):
        if name:
            with contextlib.suppress(OSError):
                yield socket.gethostbyname(name)
    yield _source_toward(_SOMEWHERE) or LOOPBACK
    for _, interface in socket.if_nameindex():
        yield _address_of(interface) or LOOPBACK


def _usable(address: str) -> bool:
    if is_loopback(address):
        return False
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def _source_toward(address: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])


def _address_of(interface: str) -> str | None:
    request = struct.pack("256s", interface.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])
