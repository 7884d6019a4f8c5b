"""Close the images that a test has opened."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.image_checks import close_opened


@pytest.fixture(autouse=True)
def closed_images() -> Iterator[None]:
    """Close what `image_checks.opened` has returned, after each test."""
    yield
    close_opened()
