"""Torch and pixels, one process: models, token reducers, data, the loops of a stage."""
