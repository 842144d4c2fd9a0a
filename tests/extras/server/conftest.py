"""The exported model of the tests of serving."""

from tests.serving import conftest as serving

exported, shop = serving.exported, serving.shop  # fixtures
