"""The `python` backend: a `model.py` with a `TritonPythonModel`, in a process of its own for each instance.

Enters: a version's folder with `model.py` and its configuration. Leaves: a `PythonModel`. Called by the model repository;
the protocol's `infer` gives it requests as they are, several at once, as Triton does. While it executes, a model may ask
another one (`pb_utils.InferenceRequest(...).exec()`).

A process that ends is started again by the next request; those it had are answered that it failed.
"""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

from google.protobuf import json_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from serve.backends.base import Ask, Asked, ModelSpec, Tensor
from serve.backends.python_channel import (
    Call,
    Called,
    Channel,
    Execute,
    Executed,
    Failed,
    Finalize,
    Start,
    Started,
    WireRequest,
    WireResponse,
    from_wire,
    tensors_of,
)
from serve.errors import (
    Cancelled,
    HeadroomError,
    InvalidInput,
    ModelFailed,
    ModelLoadError,
    NotFound,
    NotReady,
    Unsupported,
)
from serve.repository.config import spec_of
from serve.repository.protobuf_json import as_json

log = logging.getLogger(__name__)

FILE_NAME = "model.py"
_ROOT = Path(__file__).resolve().parents[2]
_CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
from serve.backends.python_worker import main
main(int(sys.argv[2]))
"""
_FINALIZE_S = 10.0
_MAX_INSTANCES = 64
_ERRORS: Mapping[int, type[HeadroomError]] = {
    2: NotFound, 3: InvalidInput, 4: NotReady, 5: Unsupported, 7: Cancelled,
}  # fmt: skip
"""By Triton's code; every other one is a failure of the model."""
_CODES = {kind: code for code, kind in _ERRORS.items()}
_INTERNAL = 1

Progress = Callable[[str], None]


class PythonModel:
    """A model's instances. Thread-safe; as many batches run at once as there are instances."""

    def __init__(self, spec: ModelSpec, instances: Sequence[_Instance]) -> None:
        self.spec = spec
        self.num_instances = len(instances)
        self._instances = instances
        self._free: SimpleQueue[_Instance] = SimpleQueue()
        for instance in instances:
            self._free.put(instance)

    def infer_requests(self, requests: Sequence[Asked]) -> list[Mapping[str, Tensor] | HeadroomError]:
        """One batch: an answer or an error for each request, in order. Raises ModelFailed where the process ended."""
        instance = self._free.get()
        try:
            responses = instance.execute([_to_wire(request) for request in requests])
        finally:
            self._free.put(instance)
        return [_answer(response) for response in responses]

    def infer(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One request without a name."""
        instance = self._free.get()
        try:
            (response,) = instance.execute([WireRequest(tensors_of(inputs))])
        finally:
            self._free.put(instance)
        answer = _answer(response)
        if isinstance(answer, HeadroomError):
            raise answer
        return dict(answer)

    def close(self) -> None:
        """Has each process finalize and end."""
        for instance in self._instances:
            instance.close()


def load_python(folder: Path, config: ModelConfig, spec: ModelSpec, progress: Progress, *, ask: Ask) -> PythonModel:
    """Starts the version's instances; raises ModelLoadError with what `initialize` said, Unsupported for what is not
    served.
    """
    file = folder / (config.default_model_filename or FILE_NAME)
    if not file.is_file():
        raise ModelLoadError(f"{file} is missing; it should hold the class TritonPythonModel")
    if config.model_transaction_policy.decoupled:
        raise Unsupported("model_transaction_policy is decoupled; allowed models that answer each request once")
    if config.default_model_filename not in ("", FILE_NAME):
        raise Unsupported(f"default_model_filename is {config.default_model_filename!r}; allowed {FILE_NAME}")
    num_instances = sum(group.count for group in config.instance_group) or 1
    if num_instances > _MAX_INSTANCES:
        raise ModelLoadError(f"instance_group has {num_instances} instances; allowed {_MAX_INSTANCES}")
    instances: list[_Instance] = []
    try:
        for number in range(num_instances):
            instances.append(_Instance(folder, config, spec, number, ask))
    except BaseException:
        for instance in instances:
            instance.close()
        raise
    completed = _completed(config, instances[0].completed, spec)
    progress(f"{spec.name}: {num_instances} process{'es' if num_instances > 1 else ''} of its own")
    return PythonModel(completed, instances)


class _Instance:
    """One process. Used by one thread at a time."""

    def __init__(self, folder: Path, config: ModelConfig, spec: ModelSpec, number: int, ask: Ask) -> None:
        self.completed = ""
        self._ask = ask
        self._is_closed = False
        self._name = f"{spec.name}_{number}"
        self._start = Start(
            str(folder),
            {
                "model_config": json.dumps(as_json(config)), "model_instance_kind": "CPU", "model_instance_name": self._name,
                "model_instance_device_id": "0", "model_repository": str(folder.parent), "model_version": spec.version,
                "model_name": spec.name,
            },
        )  # fmt: skip
        self._process: subprocess.Popen[bytes]
        self._channel: Channel
        self._begin()

    def execute(self, requests: list[WireRequest]) -> list[WireResponse]:
        """Raises ModelFailed where the process ends meanwhile, NotReady for a closed one."""
        if self._is_closed:
            raise NotReady(f"model instance {self._name} is closed")
        if self._process.poll() is not None:
            log.warning("model instance %s is started again", self._name)
            self._begin()
        try:
            self._channel.send(Execute(requests))
            while isinstance(message := self._channel.receive(), Call):
                self._channel.send(Called(self._call(message)))
        except (EOFError, OSError) as error:
            self._end()
            raise ModelFailed(f"model instance {self._name} ended while it executed: {error}") from None
        assert isinstance(message, Executed)
        return message.responses

    def close(self) -> None:
        """Has it finalize; kills it where that takes too long."""
        self._is_closed = True
        try:
            self._channel.send(Finalize())
            self._process.wait(_FINALIZE_S)
        except (OSError, subprocess.TimeoutExpired):
            log.warning("model instance %s did not finalize; it is killed", self._name)
        self._end()

    def _begin(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = [str(_ROOT), str(theirs.fileno())]
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _CHILD, *arguments], pass_fds=[theirs.fileno()]
            )
        self._channel = Channel(ours)
        try:
            self._channel.send(self._start)
            message = self._channel.receive()
        except (EOFError, OSError):
            self._end()
            raise ModelLoadError(f"the process of {self._name} ended before it was ready") from None
        if isinstance(message, Failed):
            self._end()
            raise ModelLoadError(message.message)
        assert isinstance(message, Started)
        self.completed = message.completed

    def _end(self) -> None:
        self._channel.close()
        self._process.kill()
        self._process.wait()

    def _call(self, call: Call) -> WireResponse:
        try:
            inputs = {tensor.name: from_wire(tensor) for tensor in call.request.tensors}
            outputs = self._ask(call.model, call.version, inputs)
        except HeadroomError as error:
            return WireResponse(error=error.message, code=_CODES.get(type(error), _INTERNAL))
        except Exception:
            log.exception("model instance %s asked %s, which failed", self._name, call.model)
            return WireResponse(error="internal error", code=_INTERNAL)
        wanted = call.request.outputs or list(outputs)
        return WireResponse(tensors_of({name: outputs[name] for name in wanted if name in outputs}))


def _to_wire(request: Asked) -> WireRequest:
    wanted = [output.name for output in request.outputs]
    return WireRequest(tensors_of(request.inputs), request.id, dict(request.parameters), wanted)


def _answer(response: WireResponse) -> Mapping[str, Tensor] | HeadroomError:
    if response.error is not None:
        return _ERRORS.get(response.code, ModelFailed)(response.error)
    return {tensor.name: from_wire(tensor) for tensor in response.tensors}


def _completed(config: ModelConfig, text: str, spec: ModelSpec) -> ModelSpec:
    """The specification as `auto_complete_config` has it; raises ModelLoadError for what is no configuration."""
    if not text:
        return spec
    try:
        completed = json_format.Parse(text, ModelConfig(), ignore_unknown_fields=True)
    except json_format.ParseError as error:
        raise ModelLoadError(f"auto_complete_config gave no configuration: {error}") from None
    if completed.model_transaction_policy.decoupled:
        raise Unsupported("auto_complete_config made it decoupled; allowed models that answer each request once")
    completed.name = config.name
    return replace(spec_of(completed, spec.version), platform=spec.platform, backend=spec.backend)
