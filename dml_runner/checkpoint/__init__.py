"""Checkpoints: canonical by parameter name, independent of layout, committed whole or not at all; all disk work."""
