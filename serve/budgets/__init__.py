"""Deadlines, estimates, ladders and timings: what a latency budget is made of."""
