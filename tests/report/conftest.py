"""Two workers share the cores: t-SNE and k-means spin if each asks for all of them."""

import pytest
import threadpoolctl


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Keeps OpenMP to one thread."""
    with threadpoolctl.threadpool_limits(1):
        yield
