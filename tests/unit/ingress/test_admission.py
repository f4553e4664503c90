"""Admission: no page of somebody else's reaches a loopback server, by a foreign Origin or by a foreign Host."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.context import DEFAULT_TENANT, EVERYONE
from serve.errors import Forbidden
from serve.ingress.admission import Admission, host_name, is_local_name

OWN_HOSTS = ["localhost", "localhost:8000", "LocalHost:8000", "127.0.0.1", "127.0.0.1:8000", "127.8.9.1:80", "[::1]",
             "[::1]:8000", "[0:0:0:0:0:0:0:1]:8000"]  # fmt: skip
FOREIGN_HOSTS = ["evil.com", "evil.com:8000", "127.0.0.1.evil.com", "127.evil.com", "localhost.evil.com:8000",
                 "evil.com.localhost.evil", "10.0.0.1", "10.0.0.1:8000", "0.0.0.0:8000", "[::2]", "[fe80::1]:8000", "",
                 ":8000", "[]", "[", "127.0.0.1@evil.com", "evil.com#127.0.0.1", " ", "2130706433", "0x7f"]  # fmt: skip
BENT_HOSTS = ["[::1].evil.com", "[::1]evil.com:80", "[::1", "localhost:evil.com", "localhost:80@evil.com",
              "127.0.0.1:80:evil.com", "localhost:99999x"]  # fmt: skip


@pytest.mark.parametrize("host", OWN_HOSTS)
def test_a_name_of_this_machine_is_let_in_whatever_its_port_or_case(host):
    assert Admission("127.0.0.1").admit(host, None) == (DEFAULT_TENANT, EVERYONE)


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
def test_a_foreign_host_is_refused_by_header_value_and_what_is_allowed(host):
    with pytest.raises(Forbidden) as refused:
        Admission("127.0.0.1").admit(host, None)
    assert repr(host) in refused.value.message
    assert "localhost" in refused.value.message


@pytest.mark.parametrize("host", BENT_HOSTS)
def test_a_host_that_only_begins_like_a_local_one_is_refused(host):
    """RFC 9110, 7.2: Host is uri-host, optionally ":" and digits."""
    with pytest.raises(Forbidden):
        Admission("127.0.0.1").admit(host, None)


def test_a_foreign_host_stays_refused_when_it_asks_again():
    admission = Admission("127.0.0.1")
    for _ in range(3):
        with pytest.raises(Forbidden):
            admission.admit("evil.com", None)


def test_a_client_without_host_or_origin_is_no_browser_and_is_let_in():
    Admission("127.0.0.1").admit(None, None)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://localhost:8000", "localhost:8000"),
        ("https://127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://[::1]:8000", "[::1]:8000"),
        ("http://LOCALHOST:8000", "localhost:8000"),
        ("http://localhost:8000", "LocalHost:8000"),
    ],
)
def test_the_servers_own_pages_may_call_it(origin, host):
    Admission("127.0.0.1").admit(host, origin)


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.com",
        "https://evil.com:8000",
        "null",
        "",
        "http://localhost:3000",
        "http://localhost",
        "http://localhost:8000.evil.com",
        "http://evil.com/localhost:8000",
        "http://evil.com://localhost:8000",
        "file://",
        "chrome-extension://localhost:8000",
        "http://127.0.0.1:8000",
        "localhost:8000",
        "http://localhost:8000/",
    ],
)
def test_a_foreign_origin_is_refused_although_the_host_is_local(origin):
    with pytest.raises(Forbidden) as refused:
        Admission("127.0.0.1").admit("localhost:8000", origin)
    assert "Origin" in refused.value.message
    assert repr(origin) in refused.value.message


def test_an_origin_without_a_host_to_compare_it_with_is_refused():
    with pytest.raises(Forbidden):
        Admission("127.0.0.1").admit(None, "http://localhost:8000")


def test_a_rebound_name_is_refused_although_origin_and_host_agree():
    with pytest.raises(Forbidden):
        Admission("localhost").admit("evil.com:8000", "http://evil.com:8000")


@pytest.mark.parametrize("listen_host", ["0.0.0.0", "192.168.1.5", "::"])
def test_a_server_opened_on_purpose_takes_any_host_but_no_foreign_origin(listen_host):
    admission = Admission(listen_host)
    admission.admit("my-server.example:8000", None)
    admission.admit("my-server.example:8000", "http://my-server.example:8000")
    with pytest.raises(Forbidden):
        admission.admit("my-server.example:8000", "http://evil.com")


@pytest.mark.parametrize("listen_host", ["127.0.0.1", "::1", "localhost"])
def test_each_way_to_listen_on_loopback_refuses_foreign_hosts(listen_host):
    with pytest.raises(Forbidden):
        Admission(listen_host).admit("evil.com", None)


def test_what_is_sent_back_of_a_long_header_is_cut():
    for host, origin in (("e" * 10_000, None), ("localhost", "http://" + "e" * 10_000)):
        with pytest.raises(Forbidden) as refused:
            Admission("127.0.0.1").admit(host, origin)
        assert len(refused.value.message) < 300


@given(st.text())
def test_any_host_is_let_in_or_forbidden(host):
    try:
        Admission("127.0.0.1").admit(host, None)
    except Forbidden:
        return
    assert is_local_name(host_name(host))


@given(st.text())
def test_any_origin_is_let_in_or_forbidden(origin):
    try:
        Admission("127.0.0.1").admit("localhost:8000", origin)
    except Forbidden:
        return
    assert origin.lower() in ("http://localhost:8000", "https://localhost:8000")


@given(st.ip_addresses())
def test_an_address_is_local_exactly_when_it_is_loopback(address):
    assert is_local_name(str(address)) == address.is_loopback


@pytest.mark.parametrize(
    ("authority", "name"),
    [("a", "a"), ("a:1", "a"), ("[::1]", "::1"), ("[::1]:1", "::1"), ("127.0.0.1:8000", "127.0.0.1"), ("", "")],
)
def test_the_host_of_an_authority_is_without_port_and_brackets(authority, name):
    assert host_name(authority) == name
