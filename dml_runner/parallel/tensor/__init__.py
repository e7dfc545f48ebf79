"""Layers split over ranks: matrices by columns and rows, embeddings and loss by token (Shoeybi et al. 2019)."""
