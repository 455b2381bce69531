"""Tests share a machine: one thread for each is faster than many that wait for each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is loaded; processes that the tests start inherit it

import torch

torch.set_num_threads(1)
