"""XGBoost behind Triton's Python backend: all requests of a batch are scored in one call."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils
import xgboost


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.booster = xgboost.Booster(model_file=config["parameters"]["model_file"]["string_value"])
        self.booster.set_param({"nthread": 1})

    def execute(self, requests):
        rows = [pb_utils.get_input_tensor_by_name(request, "input__0").as_numpy() for request in requests]
        positive = self.booster.inplace_predict(np.concatenate(rows))
        scores = np.stack([1 - positive, positive], axis=1).astype(np.float32)
        responses, begin = [], 0
        for part in rows:
            out = pb_utils.Tensor("output__0", scores[begin : begin + len(part)])
            responses.append(pb_utils.InferenceResponse(output_tensors=[out]))
            begin += len(part)
        return responses
