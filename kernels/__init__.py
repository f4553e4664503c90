"""The compiled core: Numba kernels, each with a plain twin in `kernels.reference…`, and the gRPC transport in C++.

Kept free of heavy imports: `kernels` is also the name of a Hugging Face package that transformers probes by import.
"""

__version__ = "0"
