"""Compressed bodies: Content-Encoding gzip and deflate (zlib) in requests, Accept-Encoding in answers.

A compressed request body enters and the plain one leaves, never larger than its bound; answer parts enter and their
compressed form leaves. Called by the HTTP routes before decoding and after encoding.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from serve.errors import InvalidInput, TooLarge, UnsupportedEncoding

_WINDOW_BITS = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
# The fastest level: tensors of floats hardly shrink, and level 6 takes four times as long.
_LEVEL = 1


def decompress(body: bytes | memoryview, encoding: str, max_bytes: int) -> bytes | memoryview:
    """The body as it was before `encoding` (a Content-Encoding value; empty or `identity` gives it back as it is).

    Stops at the bound, so a small body cannot unfold into a large one. Raises TooLarge over `max_bytes`, InvalidInput
    for damaged data, Unsupported for another encoding.
    """
    name = encoding.strip().lower()
    if name in {"", "identity"}:
        return body
    if name not in _WINDOW_BITS:
        raise UnsupportedEncoding(f"Content-Encoding is {encoding[:64]!r}; allowed gzip, deflate, identity")
    inflater = zlib.decompressobj(_WINDOW_BITS[name])
    try:
        plain = inflater.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise InvalidInput(f"the body is not {name} data: {error}", field="Content-Encoding") from None
    if len(plain) > max_bytes:
        raise TooLarge(f"the body is over {max_bytes} bytes once decompressed; allowed up to {max_bytes}")
    if not inflater.eof or inflater.unused_data:
        problem = "has bytes after its end" if inflater.eof else "ends too early"
        raise InvalidInput(f"the body's {name} data {problem}; allowed one whole stream", field="Content-Encoding")
    return plain


def chosen_encoding(accept_encoding: str) -> str | None:
    """The first of gzip and deflate, in the client's order, that an Accept-Encoding header takes; None for neither."""
    for item in accept_encoding.lower().split(","):
        name, _, parameters = item.partition(";")
        is_refused = parameters.replace(" ", "") in {"q=0", "q=0.0", "q=0.00", "q=0.000"}
        if name.strip() in _WINDOW_BITS and not is_refused:
            return name.strip()
    return None


def compress(parts: Sequence[bytes], encoding: str) -> bytes:
    """The parts joined and compressed; `encoding` is one that `chosen_encoding` gave."""
    deflater = zlib.compressobj(_LEVEL, wbits=_WINDOW_BITS[encoding])
    return b"".join([*(deflater.compress(part) for part in parts), deflater.flush()])
