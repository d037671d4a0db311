"""Ports given to nodes that are started later, while others ask for ports too."""

import socket
import subprocess
import sys

import pytest

from switch.cli.apart import free_port


def test_no_port_is_given_twice_before_it_is_used() -> None:
    """Among so many of 12,000, chance alone would repeat some ten."""
    given = [free_port() for _ in range(500)]
    assert len(set(given)) == len(given)


def test_another_process_does_not_get_it_and_a_listener_does() -> None:
    port = free_port()
    other = f"import socket; socket.socket().bind(('127.0.0.1', {port}))"
    refused = subprocess.run([sys.executable, "-c", other], capture_output=True, check=False)
    assert b"Address already in use" in refused.stderr
    with (
        socket.create_server(("127.0.0.1", port)),  # with SO_REUSEADDR, as every listener of ours
        pytest.raises(OSError, match="Address already in use"),
    ):
        socket.create_server(("127.0.0.1", port))
