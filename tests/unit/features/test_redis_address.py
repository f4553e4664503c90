"""Addresses of Redis: what they mean, and that nothing secret is shown."""

from __future__ import annotations

import pytest

from serve.features.redis_connection import connect, parse_address


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://cache", "single cache:6379"),
        ("redis://u:p@cache:7000/3", "single cache:7000"),
        ("redis://[::1]:7000", "single ::1:7000"),
        ("redis+sentinel://a:1,b,c:3/main", "sentinel a:1,b:26379,c:3/main"),
        ("rediss+cluster://:p@a:1,b:2", "cluster a:1,b:2"),
    ],
)
def test_an_address_is_shown_without_its_secrets(text, shown):
    assert parse_address(text).shown == shown


def test_user_password_database_and_tls_are_read():
    address = parse_address("rediss://kim:o%40p@cache:7000/3?ssl_ca_certs=/ca.pem")
    assert (address.username, address.password, address.database) == ("kim", "o@p", 3)
    assert address.options == {"ssl": True, "ssl_ca_certs": "/ca.pem"}


def test_a_password_from_elsewhere_stands_in():
    assert parse_address("redis://cache", "secret").password == "secret"
    assert parse_address("redis://:own@cache", "secret").password == "own"


@pytest.mark.parametrize(
    "text",
    ["http://cache", "redis://", "redis://cache:99999", "redis://cache/x", "redis://cache/1/2", "redis+cluster://a/1",
     "redis+sentinel://a:1", "redis://secret:word@cache?ssl=1"],
)  # fmt: skip
def test_what_is_no_address_is_refused_without_showing_a_password(text):
    with pytest.raises(ValueError, match=r"features\.store") as refused:
        parse_address(text)
    assert "word" not in str(refused.value)


@pytest.mark.parametrize("text", ["redis://127.0.0.1:1", "redis+sentinel://127.0.0.1:1/main", "rediss://127.0.0.1:1"])
def test_a_client_connects_when_it_is_used_and_not_before(text):
    connect(parse_address(text), 0.01)
