"""Torch and pixels, one process: models, token reducers, data and the loops of a stage (no Ray here)."""
