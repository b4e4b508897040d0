"""Tests. The workers of a run share the cores: each computes on one thread, which must be said before NumPy loads."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
