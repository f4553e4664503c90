from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.errors import InvalidInput, TooLarge, Unsupported
from serve.ingress.wire.content_encoding import chosen_encoding, compress, decompress


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@settings(max_examples=50)
@given(parts=st.lists(st.binary(max_size=100), max_size=4))
def test_what_is_compressed_is_decompressed(encoding: str, parts: list[bytes]) -> None:
    plain = b"".join(parts)
    assert decompress(compress(parts, encoding), encoding, len(plain)) == plain


@pytest.mark.parametrize("encoding", ["", "identity", " Identity "])
def test_a_plain_body_is_given_back(encoding: str) -> None:
    assert decompress(b"abc", encoding, 1) == b"abc"


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_bomb_stops_at_the_bound(encoding: str) -> None:
    bomb = compress([bytes(50_000_000)], encoding)
    assert len(bomb) < 500_000
    with pytest.raises(TooLarge, match="over 1000 bytes once decompressed"):
        decompress(bomb, encoding, 1000)


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (b"abc", "gzip"),
        (b"", "gzip"),
        (b"", "deflate"),
        (gzip.compress(b"abc")[:-1], "gzip"),
        (gzip.compress(b"abc") + b"x", "gzip"),
        (gzip.compress(b"abc"), "deflate"),
        (zlib.compress(b"abc"), "gzip"),
    ],
)
def test_damaged_data_is_refused(body: bytes, encoding: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decompress(body, encoding, 1000)
    assert caught.value.field == "Content-Encoding"


def test_another_encoding_is_not_offered() -> None:
    with pytest.raises(Unsupported, match="Content-Encoding is 'br'; allowed gzip, deflate"):
        decompress(b"", "br", 1000)


@pytest.mark.parametrize(
    ("header", "chosen"),
    [
        ("gzip", "gzip"),
        ("deflate, gzip", "deflate"),
        ("br, GZIP;q=0.5", "gzip"),
        ("gzip; q=0, deflate", "deflate"),
        ("", None),
        ("identity, *", None),
    ],
)
def test_the_first_encoding_the_client_takes_is_chosen(header: str, chosen: str | None) -> None:
    assert chosen_encoding(header) == chosen
