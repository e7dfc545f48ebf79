"""How ranks talk: the groups of a world, small words between all ranks, and what was sent."""
