"""No test reaches for a network: what Python asks of any machine but this one is refused, written down, and fails the test.

`forbid` sees every connection and every look-up of a name through Python's audit events, whoever makes it.
`sitecustomize.py` beside this file forbids them in the processes that tests start, too.
"""

import ipaddress
import os
import socket
import sys
from pathlib import Path
from typing import Any

LOG = "DITKIT_TEST_NETWORK_LOG"  # an environment variable: the file that refusals of all processes are written to
LOOK_UPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
CONNECTIONS = ("socket.connect", "socket.sendto", "socket.sendmsg")


class NetworkReached(BaseException):
    """Not an Exception: code that tries again, or goes on without, must not hide it."""


def is_this_machine(host: Any) -> bool:
    """Whether a host's name or address stays on the loopback interface; None and "" do."""
    if isinstance(host, bytes):
        host = host.decode(errors="replace")
    if not host or host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(str(host).partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def forbid() -> None:
    """From now on and until the process ends, NetworkReached is raised at every attempt, after a line in the log."""

    def hook(event: str, args: tuple) -> None:
        if event in LOOK_UPS:
            host, what = args[0], "looks up"
        elif event in CONNECTIONS and args[0].family in (socket.AF_INET, socket.AF_INET6) and args[1]:
            host, what = args[1][0], "connects to"
        else:
            return
        if not is_this_machine(host):
            with open(os.environ[LOG], "a", encoding="utf-8") as lines:
                lines.write(f"{what} {host}\n")
            raise NetworkReached(f"a test {what} {host}: tests use no network, only this machine")

    sys.addaudithook(hook)


def forbid_everywhere(log: Path) -> None:
    """`forbid`, here and in the Python processes started from now on: they find `sitecustomize.py` beside this file."""
    os.environ[LOG] = str(log)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *filter(None, paths)])
    forbid()
