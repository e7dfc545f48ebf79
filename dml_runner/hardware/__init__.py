"""The machine: what a profile says, and what this one has."""
