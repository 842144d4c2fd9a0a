"""A cluster for all tests of this folder. Where ray is absent, the modules are skipped."""

import pytest


@pytest.fixture(scope="session")
def cluster():
    from ray import cloudpickle

    from tests.extras.ray import cluster

    cloudpickle.register_pickle_by_value(cluster)  # workers do not import tests
    nodes = cluster.Nodes()
    yield nodes
    nodes.stop()


@pytest.fixture
def nodes(cluster):
    """The cluster, whole and with this process connected. A connection stays, since its workers
    have the imports done.
    """
    cluster.complete()
    cluster.connect()
    return cluster
