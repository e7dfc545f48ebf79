"""What several schedules share: the order in which micro-batches pass a rank's stages."""
