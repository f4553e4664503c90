"""Puts one replica together: the only place that knows every part. Plain classes, without Ray."""
