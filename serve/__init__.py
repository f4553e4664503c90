"""The server. A request's way through it:

1. `serve.ingress.http`, or `serve.ingress.grpc_native` on `kernels.transport`: a listener reads it, makes its
   `RequestContext` and `Deadline`
2. `serve.ingress.admission`: may it come in at all?
3. `serve.batching.collector`: it waits, bounded, for the batch that is running, or is refused because it would be late
4. `serve.batching.runner`, `forming`: who goes together, on which rung of the ladder, and on whose thread
5. `serve.ingress.wire.<pipeline>`: bytes become the pipeline's contract
6. `serve.pipelines.<pipeline>.flow`: the stages, on the whole batch, with `features` and `backends`
7. `serve.ingress.wire.<pipeline>`, `serve.ingress.status`: one outcome per item becomes bytes and a status
8. `serve.budgets`, `serve.observability`: what it took, against what was promised
"""
