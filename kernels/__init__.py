"""The compiled core: Numba kernels, each with a plain twin in `kernels.reference`.

Kept free of heavy imports: `kernels` is also the name of a Hugging Face package that transformers probes by import.
"""

__version__ = "0"
