"""From single requests to micro-batches and back, one outcome per item."""
