"""What tests of figures share."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.pyplot as plt
import pytest

from fgnet_lib.views import plots


@pytest.fixture
def drawing() -> Iterator[None]:
    """Figures in the course's style; all are closed after the test."""
    plots.style()
    yield
    plt.close("all")
