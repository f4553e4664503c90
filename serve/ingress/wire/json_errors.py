"""What is wrong with a JSON body, in words that name the field, what was got and what is allowed.

Only on the way out of a failed decode: msgspec says what it expected and where, the body is read again for what it got.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from serve.errors import HeadroomError, InvalidInput

_PATH = re.compile(r" - at `(?P<path>\$?[^`]*)`$")
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]+)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`$", re.DOTALL)
_EXPECTED = re.compile(r"^Expected (?P<allowed>.*?)(?:, got (?P<got>.*))?$")
_STEP = re.compile(r"\.(?P<key>[^.\[]+)|\[(?P<index>\d+)\]")
_MAX_SHOWN_CHARS = 80
Undecodable = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises for a body that is not what it should be: msgspec lets the last two through."""


def explain(error: Exception, body: bytes, *, rules: Mapping[str, str], base: str = "") -> InvalidInput:
    """The InvalidInput for a body that msgspec refused; `rules` say what is allowed per field, `base` is put
    before the field's path.
    """
    text = str(error)
    if isinstance(error, RecursionError):
        return InvalidInput(f"{base or 'the body'} is nested too deeply", field=base or None)
    if not isinstance(error, msgspec.ValidationError):
        return InvalidInput(f"{base or 'the body'} is not valid JSON: {text}", field=base or None)
    found = _PATH.search(text)
    path = found["path"].removeprefix("$").removeprefix(".") if found else ""
    message = text[: found.start()] if found else text
    if (missing := _MISSING.search(message)) is not None:
        return _about(base, _join(path, missing["name"]), "is missing; it is required")
    if (unknown := _UNKNOWN.search(message)) is not None:
        return _about(base, _join(path, unknown["name"] or "''"), f"is not known; allowed: {', '.join(rules)}")
    expected = _EXPECTED.match(message)
    told = expected["allowed"].replace("`", "") if expected else message
    allowed = rules.get(path.rpartition(".")[2], told)
    return _about(base, path, f"is {_shown(body, path)}; allowed: {allowed}")


def placed(error: HeadroomError, base: str) -> HeadroomError:
    """A stage's error about an item's field, put below the item's place in the request, as the decoder's errors are."""
    if not isinstance(error, InvalidInput) or error.field is None or error.field.startswith(base):
        return error
    return InvalidInput(f"{base}.{error.message}", field=f"{base}.{error.field}")


def _about(base: str, path: str, problem: str) -> InvalidInput:
    field = _join(base, path)
    return InvalidInput(f"{field or 'the body'} {problem}", field=field or None)


def _join(base: str, path: str) -> str:
    joined = f"{base}.{path}" if base and path else base or path
    return joined if len(joined) <= _MAX_SHOWN_CHARS else joined[:_MAX_SHOWN_CHARS] + "…"


def _shown(body: bytes, path: str) -> str:
    """The value at `path`, cut to a length that can be sent."""
    try:
        value: Any = msgspec.json.decode(body)
        for step in _STEP.finditer("." + path if path and path[0] != "[" else path):
            value = value[int(step["index"])] if step["index"] else value[step["key"]]
        text = msgspec.json.encode(value).decode()
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return "something else"
    return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "…"
