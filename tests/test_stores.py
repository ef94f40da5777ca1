"""The bundled stores: the conformance kit, and what it cannot know."""
from flops_fit_core.testing import StoreConformance

class TestSqlite(StoreConformance):
    name = "sqlite"


class TestJson(StoreConformance):
    name = "json"
