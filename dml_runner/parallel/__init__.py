"""What changes a module or moves its tensors: no config, no model names."""
