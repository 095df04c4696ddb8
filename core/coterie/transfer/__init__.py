"""Stores to folders of files, and back: for backups, moves to another store, and analysis elsewhere."""

from coterie.transfer.exporting import Range, export_store
from coterie.transfer.importing import import_store
from coterie.transfer.manifest import Format, Manifest

__all__ = ["Format", "Manifest", "Range", "export_store", "import_store"]
