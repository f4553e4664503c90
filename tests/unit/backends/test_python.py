"""The python backend: a `model.py` as one writes it for Triton, in a process of its own."""

from __future__ import annotations

import os
import signal
import textwrap
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from serve.backends.base import RequestModel, Tensor
from serve.backends.python import PythonModel, load_python
from serve.errors import HeadroomError, InvalidInput, ModelFailed, ModelLoadError, NotFound, NotReady, Unsupported
from serve.pipelines.infer.contract import InferRequest, RequestedOutput
from tests.redis_server import until

CONFIG = """
name: "m" backend: "python" max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: -1 } output { name: "y" data_type: TYPE_FP32 dims: -1 }
parameters { key: "factor" value { string_value: "3" } }
"""
SCALING = """
import json
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.factor = float(config["parameters"]["factor"]["string_value"])
        self.dtype = pb_utils.triton_string_to_numpy(pb_utils.get_output_config_by_name(config, "y")["data_type"])
        self.num_batches = 0

    def execute(self, requests):
        self.num_batches += 1
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            if (x < 0).any():
                error = pb_utils.TritonError("negative", pb_utils.TritonError.INVALID_ARG)
                responses.append(pb_utils.InferenceResponse(error=error))
                continue
            y = pb_utils.Tensor("y", (x * self.factor).astype(self.dtype))
            about = np.array([request.request_id(), request.parameters(), str(len(requests))], object)
            responses.append(pb_utils.InferenceResponse([y, pb_utils.Tensor("about", about)]))
        return responses

    def finalize(self):
        open("finalized", "w").close()
"""


def no_other(name: str, version: str, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    raise NotFound(f"no model {name}")


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


class Loader:
    def __init__(self, folder: Path, closing: ExitStack) -> None:
        self.folder = folder / "m" / "1"
        self.folder.mkdir(parents=True)
        self._closing = closing

    def __call__(self, code: str, config: str = CONFIG, ask=no_other) -> PythonModel:
        from serve.repository.config import spec_of

        (self.folder / "model.py").write_text(textwrap.dedent(code))
        parsed = text_format.Parse(config, ModelConfig())
        model = load_python(self.folder, parsed, spec_of(parsed, "1"), lambda line: None, ask=ask)
        self._closing.callback(model.close)
        return model


@pytest.fixture
def load(tmp_path: Path, closing: ExitStack) -> Loader:
    return Loader(tmp_path, closing)


def request(*values: float, **fields: object) -> InferRequest:
    return InferRequest({"x": np.array([values], np.float32)}, (RequestedOutput("y"),), **fields)  # type: ignore[arg-type]


def test_requests_are_executed_as_they_are_and_together(load: Loader) -> None:
    model = load(SCALING)
    assert isinstance(model, RequestModel)
    first, second = model.infer_requests([request(1, 2, id="a", parameters={"p": True}), request(5)])
    assert not isinstance(first, HeadroomError)
    assert not isinstance(second, HeadroomError)
    np.testing.assert_array_equal(first["y"], np.array([[3, 6]], np.float32))
    assert first["about"].tolist() == [b"a", b'{"p": true}', b"2"]
    np.testing.assert_array_equal(second["y"], np.array([[15]], np.float32))
    assert second["about"].tolist()[:2] == [b"", b"{}"]


def test_an_error_of_one_request_is_its_own(load: Loader) -> None:
    good, bad, also_good = load(SCALING).infer_requests([request(1), request(-1), request(2)])
    assert isinstance(bad, InvalidInput)
    assert bad.message == "negative"
    assert not isinstance(good, HeadroomError)
    assert not isinstance(also_good, HeadroomError)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise ValueError('the matrix is singular')", "ValueError: the matrix is singular"),
        ("raise pb_utils.TritonModelException('not today')", "TritonModelException: not today"),
        ("return []", "execute gave 0 for 2 requests; allowed a response for each"),
        ("return None", "execute gave NoneType for 2 requests"),
        ("return [None, None]", "AttributeError"),
        (
            "return [pb_utils.InferenceResponse([pb_utils.Tensor('y', np.array([1j]))])] * 2",
            "elements of type complex128",
        ),
    ],
)
def test_a_model_that_fails_as_a_whole_fails_each_request_with_its_words_and_goes_on(
    load: Loader, body: str, said: str
) -> None:
    model = load(f"""
        import numpy as np
        import triton_python_backend_utils as pb_utils

        class TritonPythonModel:
            def execute(self, requests):
                {body}
    """)
    for _ in range(2):
        answers = model.infer_requests([request(1), request(2)])
        assert all(isinstance(answer, ModelFailed) and said in answer.message for answer in answers)


def test_a_process_that_is_killed_fails_its_requests_and_is_started_again(load: Loader) -> None:
    model = load(f"""
        import os, signal
        {textwrap.indent(textwrap.dedent(SCALING), "        ").strip()}
            def execute(self, requests):
                if any((pb_utils.get_input_tensor_by_name(r, "x").as_numpy() == 13).any() for r in requests):
                    os.kill(os.getpid(), signal.SIGKILL)
                y = pb_utils.Tensor("y", np.array([[os.getpid()]], np.int64))
                return [pb_utils.InferenceResponse([y]) for _ in requests]
    """)
    before = model.infer_requests([request(1)])[0]["y"][0, 0]
    with pytest.raises(ModelFailed, match="model instance m_0 ended while it executed"):
        model.infer_requests([request(13)])
    after = model.infer_requests([request(1)])[0]["y"][0, 0]
    assert before != after
    os.kill(int(after), signal.SIGKILL)  # by somebody else, between two requests
    until(lambda: not_answered_or_new(model, int(after)), "it answers again")


def not_answered_or_new(model: PythonModel, former: int) -> bool:
    try:
        return int(model.infer_requests([request(1)])[0]["y"][0, 0]) != former
    except ModelFailed:
        return False


def test_a_model_may_ask_another_and_sees_its_errors(load: Loader) -> None:
    asked: list[tuple[str, str]] = []

    def ask(name: str, version: str, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        asked.append((name, version))
        if name == "none":
            raise NotFound("Request for unknown model: 'none' is not found")
        return {"z": inputs["a"] + 1, "unwanted": inputs["a"]}

    model = load(
        """
        import asyncio
        import numpy as np
        import triton_python_backend_utils as pb_utils

        class TritonPythonModel:
            def execute(self, requests):
                return [self.one(pb_utils.get_input_tensor_by_name(r, "x").as_numpy()) for r in requests]

            def one(self, x):
                name = "none" if x[0, 0] < 0 else "other"
                tensors = [pb_utils.Tensor("a", x)]
                asking = pb_utils.InferenceRequest("", 0, ["z"], name, 7, tensors)
                found = asking.exec() if x[0, 0] < 5 else asyncio.run(asking.async_exec())
                if found.has_error():
                    return pb_utils.InferenceResponse(error=found.error())
                assert [t.name() for t in found.output_tensors()] == ["z"]
                y = pb_utils.get_output_tensor_by_name(found, "z").as_numpy()
                return pb_utils.InferenceResponse([pb_utils.Tensor("y", y)])
        """,
        ask=ask,
    )
    one, other, unknown = model.infer_requests([request(1), request(6), request(-1)])
    assert (one["y"].tolist(), other["y"].tolist()) == ([[2.0]], [[7.0]])  # type: ignore[index]
    assert isinstance(unknown, NotFound)
    assert "'none' is not found" in unknown.message
    assert asked == [("other", "7"), ("other", "7"), ("none", "7")]


@pytest.mark.parametrize(
    "values",
    [
        np.array([[True, False]]), np.array([[-(2**63), 2**63 - 1]], np.int64), np.array([[1.5, np.nan]], np.float16),
        np.zeros((0, 3), np.float64), np.array([[b"", "ü☺".encode(), b"\xff\x00"]], np.object_),
        np.zeros((1, 0), np.object_),
        np.arange(6, dtype=np.float32).reshape(3, 2).T,
    ],
)  # fmt: skip
def test_tensors_arrive_and_come_back_as_they_are(load: Loader, values: np.ndarray) -> None:
    model = load("""
        import triton_python_backend_utils as pb_utils

        class TritonPythonModel:
            def execute(self, requests):
                return [pb_utils.InferenceResponse([pb_utils.Tensor("y", r.inputs()[0].as_numpy())]) for r in requests]
    """)
    (found,) = model.infer_requests([InferRequest({"x": values}, ())])
    assert not isinstance(found, HeadroomError)
    assert (found["y"].dtype, found["y"].shape) == (values.dtype, values.shape)
    assert (
        found["y"].tobytes() == values.tobytes() if values.dtype != object else found["y"].tolist() == values.tolist()
    )


def test_as_many_batches_run_at_once_as_there_are_instances(load: Loader, tmp_path: Path) -> None:
    model = load(
        """
        import os, time
        import numpy as np
        import triton_python_backend_utils as pb_utils

        class TritonPythonModel:
            def initialize(self, args):
                self.name = args["model_instance_name"]

            def execute(self, requests):
                open(self.name, "w").close()
                while len([name for name in os.listdir() if name.startswith("m_")]) < 2:
                    time.sleep(0.001)
                return [pb_utils.InferenceResponse([pb_utils.Tensor("y", np.array([self.name], object))])]
        """,
        CONFIG + "instance_group { count: 2 kind: KIND_CPU }",
    )
    assert model.num_instances == 2
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(model.infer_requests([request(1)])[0]["y"][0].decode()))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(found) == ["m_0", "m_1"]


def test_what_a_model_completes_of_its_configuration_is_its_specification(load: Loader) -> None:
    model = load(
        """
        import triton_python_backend_utils as pb_utils

        class TritonPythonModel:
            @staticmethod
            def auto_complete_config(config):
                config.add_input({"name": "a", "data_type": "TYPE_STRING", "dims": [-1]})
                config.add_output({"name": "b", "data_type": "TYPE_INT64", "dims": [2, 3]})
                config.set_max_batch_size(5)
                config.set_dynamic_batching()
                return config
        """,
        'name: "m" backend: "python"',
    )
    assert model.spec.max_batch_size == 5
    assert [(one.name, one.datatype, one.shape) for one in (*model.spec.inputs, *model.spec.outputs)] == [
        ("a", "BYTES", (-1,)), ("b", "INT64", (2, 3)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("x = 1", "has no attribute 'TritonPythonModel'"),
        ("class TritonPythonModel:\n    def initialize(self, args): raise KeyError('weights')", "KeyError: 'weights'"),
        ("import os; os._exit(3)", "the process of m_0 ended before it was ready"),
    ],
)
def test_a_model_that_cannot_start_says_why(load: Loader, code: str, said: str) -> None:
    with pytest.raises(ModelLoadError, match=said):
        load(code)


def test_what_is_not_served_is_refused(load: Loader) -> None:
    with pytest.raises(Unsupported, match="decoupled"):
        load(SCALING, CONFIG + "model_transaction_policy { decoupled: true }")
    (load.folder / "other.py").touch()
    with pytest.raises(Unsupported, match=r"default_model_filename is 'other\.py'"):
        load(SCALING, CONFIG + 'default_model_filename: "other.py"')


def test_an_ended_model_has_finalized_and_says_so(load: Loader) -> None:
    model = load(SCALING)
    model.close()
    assert (load.folder / "finalized").exists()
    with pytest.raises(NotReady, match="m_0 is closed"):
        model.infer_requests([request(1)])
