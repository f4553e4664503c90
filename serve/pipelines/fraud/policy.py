"""Reads what was trained beside the model: thresholds, risk levels and group averages, from its `policy.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from serve.errors import NotReady
from serve.features.windows import FEATURES
from serve.pipelines.fraud.stages import Policy

_Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]


class _PolicyFile(msgspec.Struct):
    features: tuple[str, ...]
    review_at: _Probability
    decline_at: _Probability
    risk_levels: tuple[_Probability, _Probability, _Probability]
    group_averages: list[float]


def read_policy(model_dir: Path) -> Policy:
    """The policy of the model version in `model_dir`; raises NotReady naming the file and what is wrong with it."""
    path = model_dir / "policy.json"
    try:
        read = msgspec.json.decode(path.read_bytes(), type=_PolicyFile)
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise NotReady(f"{path} cannot be read: {error}") from None
    if read.features != FEATURES:
        raise NotReady(f"{path} was trained on other features than this server computes; train the model anew")
    if len(read.group_averages) != len(FEATURES):
        raise NotReady(f"{path} has {len(read.group_averages)} group_averages; allowed {len(FEATURES)}")
    if read.review_at > read.decline_at or list(read.risk_levels) != sorted(read.risk_levels):
        raise NotReady(f"{path} has thresholds that fall; allowed: review_at up to decline_at, rising risk_levels")
    averages = np.array(read.group_averages, dtype=np.float32)
    return Policy(read.review_at, read.decline_at, read.risk_levels, averages)
