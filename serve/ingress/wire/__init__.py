"""Bytes and messages to and from each pipeline's contract; pure."""
