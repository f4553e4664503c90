"""The process that has a port is named where it can be seen."""

from __future__ import annotations

import os
import socket

import pytest

from serve.ingress.port_occupant import describe_occupant, describe_process

US = f"pid {os.getpid()} ("


@pytest.mark.parametrize(
    ("family", "bound", "asked"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET, "127.0.0.1", "0.0.0.0"),
        (socket.AF_INET, "0.0.0.0", "127.0.0.1"),
        (socket.AF_INET6, "::1", "::1"),
        (socket.AF_INET6, "::", "127.0.0.1"),
    ],
)
def test_a_listener_in_the_way_is_named_with_its_command(family: socket.AddressFamily, bound: str, asked: str) -> None:
    with socket.create_server((bound, 0), family=family) as listener:
        occupant = describe_occupant(asked, listener.getsockname()[1])
    assert occupant.startswith(US)
    assert "python" in occupant


def test_a_listener_on_another_address_is_not_blamed() -> None:
    with socket.create_server(("127.0.0.2", 0)) as listener:
        assert "cannot look into" in describe_occupant("127.0.0.1", listener.getsockname()[1])


def test_a_process_that_ended_is_said_to_have_ended() -> None:
    assert describe_process(2**22 + 1) == f"pid {2**22 + 1} (ended meanwhile)"
