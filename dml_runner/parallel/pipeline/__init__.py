"""A pipeline rank's part of a step: its stages computed in a schedule's order, activations and their gradients passed between ranks."""
