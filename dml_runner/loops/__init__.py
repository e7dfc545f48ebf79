"""The loops: train and evaluate, the same for every engine."""
