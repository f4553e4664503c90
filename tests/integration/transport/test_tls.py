"""TLS and mutual TLS; certificates replaced while it serves; handshakes that never end."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import grpc
import pytest

from tests.integration.transport.interop_server import UNARY, InteropServer
from tests.redis_server import until

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
WAIT_S = 20


def self_signed(folder: Path, name: str, common_name: str = "localhost") -> tuple[Path, Path]:
    """Certificate and key, which stands for its own authority."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", f"/CN={common_name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key),
         "-out", str(certificate)], check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


def ask(server: InteropServer, authority: Path, pair: tuple[Path, Path] | None = None, num_bytes: int = 10) -> bytes:
    certificate, key = (None, None) if pair is None else (path.read_bytes() for path in pair)
    credentials = grpc.ssl_channel_credentials(authority.read_bytes(), key, certificate)
    with grpc.secure_channel(server.target, credentials, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        return channel.unary_unary(UNARY["UnaryCall"])(b" " * num_bytes, timeout=WAIT_S)


def presented(server: InteropServer) -> bytes:
    """The certificate that a new connection is shown."""
    return presented_by(server.port)


def presented_by(port: int) -> bytes:
    """The certificate that a new connection to a port is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", port)) as raw, context.wrap_socket(raw) as wrapped:
        assert wrapped.selected_alpn_protocol() == "h2"
        return wrapped.getpeercert(binary_form=True) or b""


def test_calls_of_every_size(tmp_path: Path) -> None:
    pair = self_signed(tmp_path, "server")
    with InteropServer(tls=(*pair, None)) as server:
        for num_bytes in (0, 1, 16_383, 16_384, 3_000_000):
            assert len(ask(server, pair[0], num_bytes=num_bytes)) == num_bytes


def test_a_plain_client_and_one_without_http2_are_turned_away(tmp_path: Path) -> None:
    pair = self_signed(tmp_path, "server")
    with InteropServer(tls=(*pair, None)) as server:
        with grpc.insecure_channel(server.target) as channel, pytest.raises(grpc.RpcError):
            channel.unary_unary(UNARY["UnaryCall"])(b"", timeout=2)
        context = ssl.create_default_context(cafile=str(pair[0]))
        context.set_alpn_protocols(["http/1.1"])
        with socket.create_connection(("127.0.0.1", server.port)) as raw, pytest.raises(ssl.SSLError):
            context.wrap_socket(raw, server_hostname="localhost")
        old = ssl.create_default_context(cafile=str(pair[0]))
        old.maximum_version = ssl.TLSVersion.TLSv1_1
        with socket.create_connection(("127.0.0.1", server.port)) as raw, pytest.raises((ssl.SSLError, OSError)):
            old.wrap_socket(raw, server_hostname="localhost")
        assert ask(server, pair[0]) == b" " * 10


def test_mutual_tls(tmp_path: Path) -> None:
    pair, client, stranger = (self_signed(tmp_path, name) for name in ("server", "client", "stranger"))
    with InteropServer(tls=(*pair, client[0])) as server:
        assert ask(server, pair[0], client) == b" " * 10
        for wrong in (None, stranger):
            with pytest.raises(grpc.RpcError):
                ask(server, pair[0], wrong)


def test_certificates_are_replaced_while_it_serves(tmp_path: Path) -> None:
    first, second = self_signed(tmp_path, "first"), self_signed(tmp_path, "second")
    with InteropServer(tls=(*first, None)) as server:
        credentials = grpc.ssl_channel_credentials(first[0].read_bytes())
        with grpc.secure_channel(server.target, credentials) as channel:
            call = channel.unary_unary(UNARY["UnaryCall"])
            assert call(b"1", timeout=WAIT_S) == b"1"
            shown = presented(server)
            server.transport.load_tls((str(second[0]), str(second[1]), ""))
            assert presented(server) != shown
            assert ask(server, second[0]) == b" " * 10
            assert call(b"2", timeout=WAIT_S) == b"2"  # who was connected stays so
        broken = tmp_path / "broken.pem"
        broken.write_text("-----BEGIN CERTIFICATE-----\nno\n")
        for files in ((str(broken), str(second[1]), ""), (str(second[0]), str(first[1]), ""), ("/none", "/none", "")):
            with pytest.raises(RuntimeError, match="cannot be used"):
                server.transport.load_tls(files)
        assert ask(server, second[0]) == b" " * 10


def test_handshakes_that_never_end_are_ended(tmp_path: Path) -> None:
    pair = self_signed(tmp_path, "server")
    with InteropServer(tls=(*pair, None), handshake_timeout_ns=500_000_000) as server:
        half_open = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
        for number, one in enumerate(half_open):
            one.sendall(b"\x16\x03\x01\x02\x00\x01"[: number % 7])
        until(lambda: server.transport.statistics()["accepted"] == 200, "they are there")
        assert ask(server, pair[0]) == b" " * 10
        until(lambda: server.transport.statistics()["connections"] == 0, "they are not any more")
        for one in half_open:
            one.close()
