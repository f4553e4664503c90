"""The model on stock Ray Serve, as its documentation writes a deployment: one row in, its probability out.

A request in the Open Inference Protocol's JSON enters through Ray's HTTP proxy, its answer leaves. Run by
benchmarks/peers.py with `serve run`, in the project's own environment, whose Ray is the same version.
"""

from typing import Any

from ray import serve
from starlette.requests import Request


@serve.deployment(max_ongoing_requests=128)
class Model:
    def __init__(self, path: str) -> None:
        import xgboost

        self._booster = xgboost.Booster(model_file=path)

    async def __call__(self, request: Request) -> dict[str, Any]:
        import numpy as np

        tensor = (await request.json())["inputs"][0]
        rows = np.array(tensor["data"], np.float32).reshape(tensor["shape"])
        scores = self._booster.inplace_predict(rows)
        output = {"name": "output__0", "datatype": "FP32", "shape": [len(scores), 1], "data": scores.tolist()}
        return {"model_name": "creditcard", "model_version": "1", "outputs": [output]}


def build(args: dict[str, str]) -> Any:
    """The application; `args` has the model's path."""
    return Model.bind(args["path"])
