"""Low-bit wires: gradients in fewer bits than they have, by one name each, on every backend."""
