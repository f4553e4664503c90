"""The process of one instance of a Python model: imports its `model.py`, and executes the batches it is sent.

Started by `serve.backends.python` with one end of a socket; ends with it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

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
    to_wire,
)

_API = Path(__file__).parent / "python_api"
_INTERNAL = 1
_MAX_ERROR = 2000


def main(descriptor: int) -> None:
    """Serves one model until the server is gone."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s model %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's to handle
    parent = os.getppid()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    sys.path.insert(0, str(_API))
    channel = Channel(socket.socket(fileno=descriptor))
    start = channel.receive()
    assert isinstance(start, Start)
    try:
        utils, model, completed = _load(start)
    except BaseException as error:
        channel.send(Failed(_text_of(error)))
        raise
    calls = threading.Lock()

    def ask(request: Any) -> Any:
        with calls:
            version = request.model_version()
            channel.send(Call(request.model_name(), "" if version < 0 else str(version), _request_to_wire(request)))
            answer = channel.receive()
        assert isinstance(answer, Called)
        return _response_from_wire(utils, answer.response)

    vars(utils)["_ask"] = ask
    channel.send(Started(completed))
    try:
        while isinstance(message := channel.receive(), Execute):
            channel.send(Executed(_execute(utils, model, message.requests)))
        assert isinstance(message, Finalize)
    except (EOFError, OSError):
        return
    finally:
        if hasattr(model, "finalize"):
            model.finalize()


def _end_with(parent: int) -> None:
    """A server that was killed closes the socket; a model in the middle of something does not look at it."""
    waiting = threading.Event()
    while os.getppid() == parent:
        waiting.wait(1.0)
    os._exit(1)


def _load(start: Start) -> tuple[ModuleType, Any, str]:
    """The API's module, the model, and what it completed of its configuration."""
    utils = importlib.import_module("triton_python_backend_utils")
    folder = Path(start.folder)
    sys.path[:0] = [str(folder), str(folder.parent)]
    os.chdir(folder)
    spec = importlib.util.spec_from_file_location("model", folder / "model.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder / 'model.py'} is no Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules["model"] = module
    spec.loader.exec_module(module)
    kind = module.TritonPythonModel
    completed = ""
    if hasattr(kind, "auto_complete_config"):
        config = utils.ModelConfig(json.loads(start.args["model_config"]))
        given = kind.auto_complete_config(config) or config
        completed = json.dumps(given.as_dict())
        start.args["model_config"] = completed
    model = kind()
    if hasattr(model, "initialize"):
        model.initialize(start.args)
    return utils, model, completed


def _execute(utils: Any, model: Any, requests: Sequence[WireRequest]) -> list[WireResponse]:
    """One response per request; where the model fails as a whole, its error for each."""
    try:
        responses = model.execute([_request_from_wire(utils, request) for request in requests])
        if not isinstance(responses, list | tuple) or len(responses) != len(requests):
            got = len(responses) if isinstance(responses, list | tuple) else type(responses).__name__
            raise utils.TritonModelException(
                f"execute gave {got} for {len(requests)} requests; allowed a response for each"
            )
        return [_response_to_wire(response) for response in responses]
    except Exception as error:
        if not isinstance(error, utils.TritonModelException):
            traceback.print_exc()
        return [WireResponse(error=_text_of(error), code=_INTERNAL)] * len(requests)


def _request_from_wire(utils: Any, request: WireRequest) -> Any:
    parameters = dict(request.parameters)
    start, end = parameters.pop("sequence_start", False), parameters.pop("sequence_end", False)
    return utils.InferenceRequest(
        request_id=request.id, correlation_id=parameters.pop("sequence_id", 0),
        flags=(1 if start else 0) | (2 if end else 0),
        requested_output_names=request.outputs, parameters=parameters,
        inputs=[utils.Tensor(tensor.name, from_wire(tensor)) for tensor in request.tensors],
    )  # fmt: skip


def _request_to_wire(request: Any) -> WireRequest:
    tensors = [to_wire(tensor.name(), tensor.as_numpy()) for tensor in request.inputs()]
    return WireRequest(tensors, request.request_id(), {}, request.requested_output_names())


def _response_from_wire(utils: Any, response: WireResponse) -> Any:
    if response.error is not None:
        return utils.InferenceResponse(error=utils.TritonError(response.error, response.code))
    return utils.InferenceResponse([utils.Tensor(tensor.name, from_wire(tensor)) for tensor in response.tensors])


def _response_to_wire(response: Any) -> WireResponse:
    if response.has_error():
        error = response.error()
        return WireResponse(error=error.message()[:_MAX_ERROR], code=error.code())
    return WireResponse([to_wire(tensor.name(), tensor.as_numpy()) for tensor in response.output_tensors()])


def _text_of(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:_MAX_ERROR] if str(error) else type(error).__name__
