"""Test purifiers in the workers of DataLoader, joblib and concurrent.futures: results equal those of the parent."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from tests.helpers.workers import PurifiedImages, images
from zipsdk import Purifier

pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'zipsdk[cpu]'")
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12, because torch has threads
methods = pytest.mark.parametrize(
    "method", ["fork", *(pytest.param(m, marks=pytest.mark.slow) for m in ("spawn", "forkserver"))]
)


@pytest.fixture(scope="module")
def purifier():
    return Purifier("zip-tiny", preset="fast", seed=1, device="cpu", threads=1)


@pytest.fixture(scope="module")
def expected(purifier):
    """Purify in the parent first, so that a forked child inherits an engine in use."""
    return [purifier.run(image) for image in images()]


@pytest.mark.torch
@methods
def test_workers_of_a_data_loader(purifier, expected, method):
    torch = pytest.importorskip("torch", reason="needs torch: pip install 'zipsdk[export]'")
    available(method)
    loader = torch.utils.data.DataLoader(
        PurifiedImages(purifier), batch_size=2, num_workers=2, multiprocessing_context=method, timeout=120
    )
    np.testing.assert_array_equal(np.concatenate([batch.numpy() for batch in loader]), expected)


@methods
def test_a_process_pool_executor(purifier, expected, method):
    available(method)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
        np.testing.assert_array_equal(list(pool.map(purifier.run, images(), timeout=120)), expected)


@pytest.mark.slow
def test_joblib(purifier, expected):
    joblib = pytest.importorskip("joblib", reason="needs joblib: pip install joblib")
    run = joblib.delayed(purifier.run)
    got = joblib.Parallel(n_jobs=2, backend="loky")([run(image) for image in images()])
    np.testing.assert_array_equal(got, expected)


def available(method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    if method == "fork" and not hasattr(os, "fork"):
        pytest.skip("there is no fork on this system")
