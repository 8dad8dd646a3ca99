"""The guard that keeps every test on this machine, also where its code goes on without an answer, or starts processes."""

import contextlib
import os
import socket
import subprocess
import sys
import threading

import pytest
from conftest import REACHED
from huggingface_hub import model_info
from huggingface_hub.errors import OfflineModeIsEnabled
from no_network import NetworkReached, is_this_machine

OUTSIDE = ("203.0.113.1", 80)  # reserved for documentation: no machine has it


@pytest.fixture(autouse=True)
def refusals(no_network_was_reached):
    """The lines that were written since the test began, taken away before they fail it."""
    yield lambda: REACHED.read_text().splitlines()
    REACHED.write_text("")


@pytest.mark.parametrize(
    "host", [None, "", "localhost", b"localhost", "127.0.0.1", "127.8.9.1", "::1", "0.0.0.0", "::"]
)
def test_this_machine(host):
    assert is_this_machine(host)


@pytest.mark.parametrize(
    "host", ["huggingface.co", b"huggingface.co", "10.0.0.1", "203.0.113.1", "fe80::1%eth0"]
)
def test_other_machines(host):
    assert not is_this_machine(host)


def test_what_stays_on_this_machine_is_allowed(refusals, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        pass
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(tmp_path / "socket"))
        server.listen()
        client.connect(str(tmp_path / "socket"))
    assert socket.getaddrinfo("localhost", 80)
    assert refusals() == []


def test_others_are_refused_at_once(refusals):
    for family, kind in ((socket.AF_INET, socket.SOCK_STREAM), (socket.AF_INET, socket.SOCK_DGRAM)):
        with (
            socket.socket(family, kind) as one,
            pytest.raises(NetworkReached, match=r"connects to 203\.0\.113\.1"),
        ):
            one.connect(OUTSIDE)
    with pytest.raises(NetworkReached, match=r"looks up huggingface\.co"):
        socket.create_connection(("huggingface.co", 443))
    assert refusals() == ["connects to 203.0.113.1"] * 2 + ["looks up huggingface.co"]


def test_what_is_caught_is_still_written_down(refusals):
    def tries():
        with contextlib.suppress(BaseException):
            socket.gethostbyname("huggingface.co")

    thread = threading.Thread(target=tries)
    thread.start()
    thread.join()
    assert refusals() == ["looks up huggingface.co"]


def test_processes_that_tests_start_are_refused_too(refusals):
    code = "import socket; socket.socket().connect(('203.0.113.1', 80))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "NetworkReached: a test connects to 203.0.113.1" in done.stderr
    assert refusals() == ["connects to 203.0.113.1"]


def test_the_hub_is_not_contacted(refusals):
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(OfflineModeIsEnabled):
        model_info("someone/digits")
    assert refusals() == []
