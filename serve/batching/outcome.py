"""One item's result: a value or an error, never both.

A batch is a list of these, so one bad item never fails the rest.
"""

from __future__ import annotations

from typing import TypeAlias, TypeVar

from serve.errors import HeadroomError

T = TypeVar("T")

Outcome: TypeAlias = T | HeadroomError
"""What each item of a batch ends as. Test with `isinstance(outcome, HeadroomError)`."""
