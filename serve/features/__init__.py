"""Online features: their definition, and the stores that keep them."""
