"""Model statistics as the Open Inference Protocol's messages: every field is set, for tools index them unchecked."""

from __future__ import annotations

from collections.abc import Iterable

from tritonclient.grpc import service_pb2 as pb

from serve.observability.model_statistics import VersionTimes


def model_statistics(versions: Iterable[VersionTimes]) -> pb.ModelStatisticsResponse:
    """One entry per version, in their order."""
    return pb.ModelStatisticsResponse(model_stats=[_one(version) for version in versions])


def _one(times: VersionTimes) -> pb.ModelStatistics:
    durations = {name: pb.StatisticDuration(count=of.times, ns=of.ns) for name, of in times.durations.items()}
    nothing = pb.StatisticDuration()
    return pb.ModelStatistics(
        name=times.name, version=times.version, last_inference=times.last_ms,
        inference_count=times.num_inferences, execution_count=times.num_executions,
        inference_stats=pb.InferStatistics(**durations, cache_hit=nothing, cache_miss=nothing),
        batch_stats=[_batch(rows, *of) for rows, of in times.sizes.items()],
    )  # fmt: skip


def _batch(rows: int, count: int, input_ns: int, infer_ns: int, output_ns: int) -> pb.InferBatchStatistics:
    return pb.InferBatchStatistics(
        batch_size=rows,
        compute_input=pb.StatisticDuration(count=count, ns=input_ns),
        compute_infer=pb.StatisticDuration(count=count, ns=infer_ns),
        compute_output=pb.StatisticDuration(count=count, ns=output_ns),
    )
