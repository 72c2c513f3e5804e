"""One thread: the suite runs in parallel processes, and OpenMP threads on busy cores are slower than none."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run to serve, see `serving.make_run`."""
    from serving import make_run

    return make_run(tmp_path_factory.mktemp("serving"))


@pytest.fixture
def api(run, tmp_path):
    """The API over `run` and a store of the test's own."""
    from serving import client

    with client(run, f"sqlite:///{tmp_path}/store.sqlite") as found:
        yield found
