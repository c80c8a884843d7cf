"""Rows, files and their proof: the only package with SQL, DuckDB and bytes on disk."""

from warehouse.artifacts import Artifact, ArtifactStore
from warehouse.chain import Head, LedgerReport
from warehouse.connection import Limits
from warehouse.docs import markdown
from warehouse.frames import empty
from warehouse.requests import RequestRecord
from warehouse.warehouse import Warehouse
from warehouse.writer import Receipt, Transaction

__all__ = [
    "Artifact",
    "ArtifactStore",
    "Head",
    "LedgerReport",
    "Limits",
    "Receipt",
    "RequestRecord",
    "Transaction",
    "Warehouse",
    "empty",
    "markdown",
]
