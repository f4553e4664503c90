"""Listeners and the protocols they speak; the only place that knows status codes."""
