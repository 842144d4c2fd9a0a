"""A cluster for all tests of this folder, whole at the start of each."""

import pytest

ray = pytest.importorskip("ray", reason="make test-ray installs it")

from ray import cloudpickle  # noqa: E402

from tests.ray import cluster  # noqa: E402


@pytest.fixture(scope="session")
def cluster_nodes():
    cloudpickle.register_pickle_by_value(cluster)  # workers do not import tests
    nodes = cluster.Nodes()
    yield nodes
    nodes.stop()


@pytest.fixture
def nodes(cluster_nodes):
    cluster_nodes.complete()
    with cluster_nodes.connected():
        yield cluster_nodes
