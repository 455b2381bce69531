"""Tests share a machine: one thread for each is faster than many that wait for each other."""

import torch

torch.set_num_threads(1)
