"""How ranks talk: the groups of a world, tensors sent and summed over its links, small words between all ranks, and what was sent."""
