"""What is fuzzed: one module for each thing that reads what a stranger wrote.

Each has `one_input(data)`, which lets nothing pass that is a defect: a `TippingPointError` is an answer. Some have
`TOKENS`, words that mean something to what reads them, and `JSON`, where inputs are JSON documents.
"""

from __future__ import annotations

import importlib
from types import ModuleType

# With the share of the inputs that each gets: more for what is fast, as the grammars are.
TARGETS = {
    "subjects": 300,
    "quantities": 200,
    "study_files": 80,
    "device_profiles": 20,
    "store_files": 30,
    "store_schemas": 20,
    "store_records": 10,
    "store_reports": 2,
    "length_files": 120,
    "plain_numbers": 100,
    "texts": 30,
    "jsonl_files": 60,
    "jsonl_gz_files": 15,
    "csv_files": 60,
    "csv_gz_files": 15,
    "parquet_files": 25,
    "arrow_files": 50,
    "recordings": 40,
    "images": 60,
}


def load(name: str) -> ModuleType:
    """Return the module of a target."""
    return importlib.import_module(f"targets.{name}")
