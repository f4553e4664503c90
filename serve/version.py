"""The server's version; `pyproject.toml` and the change log are held to it by a test."""

VERSION = "0.1.0"
