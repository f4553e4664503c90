"""Hot file: what a customer usually does, one row at a time: which terminals, where; part of the windows' pass.

Takes a customer's profile and a transaction; gives what stands out, and the profile after it. Called by
`kernels.windows` for every row of a customer, within its budget; twin: `kernels.reference_windows.CustomerHistory`.

A profile, behind the windows in a customer's state, is int64 words: how many places the home is the mean of (at most
`MAX_HOME`), that mean as a vector on the unit sphere (3 float64), latitude and longitude last seen (2 float64) and
when; then the terminals of the last 30 days, at most `MAX_TERMINALS`, each `hour it was last seen in << 32 | number`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

TERMINALS_7D, IS_NEW_TERMINAL, KM_FROM_HOME, KM_PER_HOUR = range(4)
NUM_COLUMNS = 4

MAX_HOME = 50
"""Later places move the home by this share at least: people do move house."""
MAX_TERMINALS = 128
"""Of more, those that were not seen for longest are forgotten."""
HEAD_WORDS = 7
MAX_WORDS = HEAD_WORDS + MAX_TERMINALS
EARTH_KM = 6371.0088  # mean radius, IUGG

_COUNT, _HOME, _LATITUDE, _LONGITUDE, _SEEN_S = 0, 1, 4, 5, 6
_HOUR_S = 3_600
_WEEK_HOURS, _MONTH_HOURS = 168, 720
_KEPT_HOURS = _MONTH_HOURS + 24  # a transaction may be a day late
_SHORTEST_S = 60
_TERMINAL_MASK = (1 << 32) - 1


@njit(nogil=True, cache=True)
def load(state: Ints, profile: Ints) -> int:
    """Unpacks the words of `state` into `profile` and gives how many; none, and an empty one, where they are wrong."""
    profile[:HEAD_WORDS] = 0
    if state.size < HEAD_WORDS or state.size > MAX_WORDS or not 0 <= state[_COUNT] <= MAX_HOME:
        return 0
    profile[: state.size] = state
    is_finite = np.isfinite(profile[_HOME:_SEEN_S].view(np.float64)).all()
    if not is_finite or not 0 <= state[_SEEN_S] < 1 << 36 or (state[HEAD_WORDS:] < 0).any():
        profile[:HEAD_WORDS] = 0
        return 0
    return int(state.size)


@njit(nogil=True, cache=True)
def see(
    profile: Ints, size: int, newest_s: int, now_s: int, terminal: int, latitude: float, longitude: float, row: Floats
) -> None:
    """Fills `row`, float64 [NUM_COLUMNS], from the profile of `size` words before the transaction.

    Terminals of the last 7 days and whether this one is new in 30 (both by whole hours), kilometres from home and
    kilometres an hour since the last place; NaN where no place is known.
    """
    hour, before = now_s // _HOUR_S, newest_s // _HOUR_S - _KEPT_HOURS
    count, is_new = 0, 1.0
    for i in range(HEAD_WORDS, size):
        seen = profile[i] >> 32
        if seen <= before:  # forgotten, or will be when the profile is packed
            continue
        count += seen > hour - _WEEK_HOURS
        if profile[i] & _TERMINAL_MASK == terminal and seen > hour - _MONTH_HOURS:
            is_new = 0.0
    row[TERMINALS_7D] = count
    row[IS_NEW_TERMINAL] = is_new
    row[KM_FROM_HOME] = np.nan
    row[KM_PER_HOUR] = np.nan
    if np.isnan(latitude) or np.isnan(longitude) or size == 0 or profile[_COUNT] == 0:
        return
    floats = profile[:HEAD_WORDS].view(np.float64)
    here = _on_sphere(latitude, longitude)
    home = (floats[_HOME], floats[_HOME + 1], floats[_HOME + 2])
    length = np.sqrt(home[0] ** 2 + home[1] ** 2 + home[2] ** 2)
    if length > 0:
        row[KM_FROM_HOME] = _distance_km(here, (home[0] / length, home[1] / length, home[2] / length))
    passed_s = now_s - profile[_SEEN_S]
    if passed_s >= 0:
        last = _on_sphere(floats[_LATITUDE], floats[_LONGITUDE])
        row[KM_PER_HOUR] = _distance_km(here, last) / (max(passed_s, _SHORTEST_S) / _HOUR_S)


@njit(nogil=True, cache=True)
def enter(profile: Ints, size: int, now_s: int, terminal: int, latitude: float, longitude: float) -> int:
    """Enters the transaction and gives the words the profile has then."""
    size = max(size, HEAD_WORDS)
    if not (np.isnan(latitude) or np.isnan(longitude)):
        floats = profile[:HEAD_WORDS].view(np.float64)
        count = min(profile[_COUNT] + 1, MAX_HOME)
        here = _on_sphere(latitude, longitude)
        for k in range(3):
            floats[_HOME + k] += (here[k] - floats[_HOME + k]) / count
        profile[_COUNT] = count
        if now_s >= profile[_SEEN_S]:
            floats[_LATITUDE], floats[_LONGITUDE] = latitude, longitude
            profile[_SEEN_S] = now_s
    return int(_enter_terminal(profile, size, now_s // _HOUR_S, terminal))


@njit(nogil=True, cache=True)
def save(profile: Ints, size: int, newest_s: int, out: Ints) -> int:
    """Packs what is not forgotten at `newest_s` into `out` and gives the words written."""
    if size == 0:
        return 0
    out[:HEAD_WORDS] = profile[:HEAD_WORDS]
    words = HEAD_WORDS
    for i in range(HEAD_WORDS, size):
        if profile[i] >> 32 > newest_s // _HOUR_S - _KEPT_HOURS:
            out[words] = profile[i]
            words += 1
    return words


@njit(nogil=True, cache=True)
def _enter_terminal(profile: Ints, size: int, hour: int, terminal: int) -> int:
    """Notes the hour, in place of the terminal's earlier one, of a free place, or of the one not seen for longest."""
    oldest = HEAD_WORDS
    for i in range(HEAD_WORDS, size):
        if profile[i] & _TERMINAL_MASK == terminal:
            profile[i] = max(profile[i], hour << 32 | terminal)
            return size
        if profile[i] < profile[oldest]:
            oldest = i
    if size < MAX_WORDS:
        oldest, size = size, size + 1
    profile[oldest] = hour << 32 | terminal
    return size


@njit(nogil=True, cache=True)
def _on_sphere(latitude: float, longitude: float) -> tuple[float, float, float]:
    phi, theta = np.radians(latitude), np.radians(longitude)
    return np.cos(phi) * np.cos(theta), np.cos(phi) * np.sin(theta), np.sin(phi)


@njit(nogil=True, cache=True)
def _distance_km(a: tuple[float, float, float], b: tuple[float, float, float]) -> float:
    """Great-circle distance, by the chord: exact for near places, where the angle's cosine is not."""
    chord = np.sqrt((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 + (a[2] - b[2]) ** 2)
    return float(2 * EARTH_KM * np.arcsin(min(1.0, chord / 2)))
