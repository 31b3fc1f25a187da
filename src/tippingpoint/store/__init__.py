"""Results in one SQLite file: versioned, crash-safe, raw samples never thrown away."""

from tippingpoint.store.merge import Merged, merge_stores
from tippingpoint.store.reading import StoredBreakdown, StoredSession
from tippingpoint.store.schema import SCHEMA_VERSION
from tippingpoint.store.store import TABLES, Store, open_store
from tippingpoint.store.vacuum import Vacuumed, vacuum_store

__all__ = [
    "SCHEMA_VERSION",
    "TABLES",
    "Merged",
    "Store",
    "StoredBreakdown",
    "StoredSession",
    "Vacuumed",
    "merge_stores",
    "open_store",
    "vacuum_store",
]
