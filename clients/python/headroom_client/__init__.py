"""Client for Headroom, the inference server whose unit of work is the latency budget.

`Client` and `AsyncClient` speak HTTP, `GrpcClient` and `AsyncGrpcClient` gRPC; all four have `.fraud` and raise the
errors below. The way of a call: fraud_api → *_client → flow (deadline, retries) ⇄ the socket → wire → the answer.
"""

from headroom_client.budgets import PipelineBudget, StageBudget
from headroom_client.errors import (
    Cancelled,
    ConnectionFailed,
    DeadlineExceeded,
    DependencyFailed,
    Forbidden,
    HeadroomClientError,
    Internal,
    InvalidInput,
    ModelFailed,
    NotFound,
    NotReady,
    Overloaded,
    TooLarge,
    UnexpectedAnswer,
    Unsupported,
)
from headroom_client.fraud import Decision, ItemError, Reason, Transaction
from headroom_client.grpc_client import AsyncGrpcClient, GrpcClient
from headroom_client.http_client import AsyncClient, Client
from headroom_client.timing import ServerTiming

__all__ = [
    "AsyncClient",
    "AsyncGrpcClient",
    "Cancelled",
    "Client",
    "ConnectionFailed",
    "DeadlineExceeded",
    "Decision",
    "DependencyFailed",
    "Forbidden",
    "GrpcClient",
    "HeadroomClientError",
    "Internal",
    "InvalidInput",
    "ItemError",
    "ModelFailed",
    "NotFound",
    "NotReady",
    "Overloaded",
    "PipelineBudget",
    "Reason",
    "ServerTiming",
    "StageBudget",
    "TooLarge",
    "Transaction",
    "UnexpectedAnswer",
    "Unsupported",
]
