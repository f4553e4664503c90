"""A small dense network: what `kernels.network` runs, read from a NumPy archive without pickles.

Called by `serve.backends.stacked`; `train.py` of a model writes the file with `write_network`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from kernels.network import score_network
from serve.errors import ModelLoadError

F32 = npt.NDArray[np.float32]
Floats = npt.NDArray[np.floating]

_MAX_WEIGHTS = 1 << 24


class Network:
    """A loaded network. Thread-safe."""

    def __init__(self, mean: F32, scale: F32, sizes: npt.NDArray[np.int64], weights: F32) -> None:
        self.num_features = int(sizes[0])
        self._arrays = (mean, scale, sizes, weights)

    def score_into(self, rows: F32, out: F32) -> None:
        """Probabilities of `rows`, float32 [n, features], C-contiguous and writeable, into `out` [n]."""
        score_network(rows, *self._arrays, out)


def write_network(path: Path, mean: Floats, scale: Floats, layers: Sequence[tuple[Floats, Floats]]) -> None:
    """Writes a network of layers (weights [inputs, units], bias [units]); the last one has one unit."""
    sizes = [len(mean), *(len(bias) for _, bias in layers)]
    parts = [part.ravel() for weights, bias in layers for part in (weights, bias)]
    arrays = {"mean": mean, "scale": scale, "weights": np.concatenate(parts)}
    with path.open("wb") as file:
        np.savez(
            file, allow_pickle=False, sizes=np.array(sizes, np.int64),
            **{name: array.astype(np.float32) for name, array in arrays.items()},
        )  # fmt: skip


def read_network(path: Path) -> Network:
    """What `write_network` wrote; raises ModelLoadError naming the file and what is wrong with it."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("mean", "scale", "sizes", "weights")}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise ModelLoadError(f"{path} does not hold a network: {error}") from None
    sizes = arrays["sizes"]
    if sizes.ndim != 1 or sizes.dtype != np.int64 or sizes.size < 2 or sizes.min() < 1 or sizes[-1] != 1:
        raise ModelLoadError(f"{path} has layers of {sizes.tolist()} units; allowed 1 and up, the last of 1")
    num_weights = sum((a + 1) * b for a, b in zip(sizes.tolist(), sizes.tolist()[1:], strict=False))
    expected = {"mean": int(sizes[0]), "scale": int(sizes[0]), "weights": num_weights}
    for name, size in expected.items():
        array = arrays[name]
        if array.shape != (size,) or array.dtype != np.float32 or size > _MAX_WEIGHTS or not np.isfinite(array).all():
            raise ModelLoadError(
                f"{path}: {name} is {array.dtype} {list(array.shape)}; allowed finite float32 [{size}]"
            )
    return Network(arrays["mean"], arrays["scale"], sizes, arrays["weights"])
