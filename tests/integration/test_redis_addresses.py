"""Every kind of address against the real thing: TLS, Sentinel with a change of master, a Cluster."""

from __future__ import annotations

import datetime
import ipaddress
import subprocess
from pathlib import Path

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from benchmarks.subject import free_ports
from serve.features.redis import RedisStore
from serve.features.redis_connection import parse_address
from serve.features.store import StoreFailed
from tests.redis_server import PASSWORD, RedisServer, until
from tests.unit.features.store_cases import events, score


def opened(address: str) -> RedisStore:
    return RedisStore(parse_address(address), timeout_ms=2_000, max_age_s=1e6)


def can_score(store: RedisStore, seed: int) -> bool:
    try:
        score(store, events(4, seed=seed))
    except StoreFailed:
        return False
    return True


def certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed one for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "redis")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(address, critical=False).sign(key, hashes.SHA256())
    )  # fmt: skip
    certificate_file, key_file = folder / "redis.crt", folder / "redis.key"
    certificate_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ))  # fmt: skip
    return certificate_file, key_file


def test_tls_is_used_and_a_stranger_is_not_trusted(tmp_path):
    certificate_file, key_file = certificate(tmp_path)
    (port,) = free_ports(1)
    server = RedisServer(
        tmp_path / "redis", "--tls-port", str(port), "--tls-cert-file", str(certificate_file),
        "--tls-key-file", str(key_file), "--tls-auth-clients", "no",
    ).start()  # fmt: skip
    trusting = opened(f"rediss://:{PASSWORD}@127.0.0.1:{port}?ssl_ca_certs={certificate_file}")
    assert score(trusting, events(4, seed=1)) == []
    trusting.close()
    wary = opened(f"rediss://:{PASSWORD}@127.0.0.1:{port}")
    with pytest.raises(StoreFailed, match="single"):
        wary.fetch(events(1, seed=1))
    wary.close()
    server.kill()


def test_sentinel_leads_to_the_new_master_when_the_old_one_dies(tmp_path):
    first = RedisServer(tmp_path / "first", "--masterauth", PASSWORD).start()
    second = RedisServer(
        tmp_path / "second", "--masterauth", PASSWORD, "--replicaof", "127.0.0.1", str(first.port)
    ).start()  # fmt: skip
    until(lambda: second.client().info("replication")["master_link_status"] == "up", "the replica follows")
    (port,) = free_ports(1)
    config = tmp_path / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\nsentinel monitor main 127.0.0.1 {first.port} 1\n"
        f"sentinel auth-pass main {PASSWORD}\nsentinel down-after-milliseconds main 500\n"
        "sentinel failover-timeout main 3000\n"
    )
    sentinel = subprocess.Popen(["redis-server", str(config), "--sentinel"], stdout=subprocess.DEVNULL)
    watch = redis.Redis(port=port)
    until(lambda: num_replicas(watch) == 1, "Sentinel knows the replica")
    store = opened(f"redis+sentinel://:{PASSWORD}@127.0.0.1:{port}/main")
    assert score(store, events(4, seed=1)) == []
    until(lambda: second.client().dbsize() == first.client().dbsize(), "the replica has the decisions")
    first.kill()
    until(lambda: can_score(store, seed=2), "the new master answers")
    assert len(store.fetch(events(4, seed=1)).stored) == 4
    store.close()
    sentinel.kill()
    sentinel.wait()
    second.kill()


def num_replicas(watch: redis.Redis) -> int:
    try:
        return len(watch.execute_command("SENTINEL", "REPLICAS", "main"))
    except redis.ConnectionError:
        return 0


def test_a_cluster_keeps_a_batch_on_one_node(tmp_path):
    server = RedisServer(tmp_path / "redis", "--cluster-enabled", "yes").start()
    server.client().execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    until(lambda: "ok" in str(server.client().cluster("INFO")["cluster_state"]), "the cluster is up")
    store = opened(f"redis+cluster://:{PASSWORD}@127.0.0.1:{server.port}")
    batch = events(16, seed=1)
    assert score(store, batch) == []
    assert len(store.fetch(batch).stored) == 16
    store.label({batch.transaction_ids[0]: True})
    entry = store.find(batch.transaction_ids[0])
    assert entry is not None
    store.erase(entry.customer_id)
    assert store.find(batch.transaction_ids[0]) is None
    store.close()
    server.kill()
