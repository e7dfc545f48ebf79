"""What the data options share: sources of text, tokenizers, the token store, and the order of samples."""
