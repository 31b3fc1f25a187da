"""Results in one SQLite file: versioned, crash-safe, raw samples never thrown away."""

from tippingpoint.store.reading import StoredBreakdown, StoredSession
from tippingpoint.store.schema import SCHEMA_VERSION
from tippingpoint.store.store import Store, open_store

__all__ = ["SCHEMA_VERSION", "Store", "StoredBreakdown", "StoredSession", "open_store"]
