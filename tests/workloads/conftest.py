"""Tensors are tiny here: a second thread costs more than it brings, most of all when others run."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
