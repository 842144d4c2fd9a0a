"""A cluster for all tests of this folder, whole at the start of each. Where ray is absent, the modules are skipped."""

import pytest


@pytest.fixture(scope="session")
def cluster_nodes():
    from ray import cloudpickle

    from tests.ray import cluster

    cloudpickle.register_pickle_by_value(cluster)  # workers do not import tests
    nodes = cluster.Nodes()
    yield nodes
    nodes.stop()


@pytest.fixture
def nodes(cluster_nodes):
    cluster_nodes.complete()
    with cluster_nodes.connected():
        yield cluster_nodes
