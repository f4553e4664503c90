"""Fuzzers and sanitizers of the transport: `make fuzz`, `make sanitize`."""
