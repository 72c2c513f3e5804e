"""One thread: the suite runs in parallel processes, and OpenMP threads on busy cores are slower than none."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
