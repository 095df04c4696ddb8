"""Migrations of the tables, run by ``coterie.store.schema``; one file a version in ``versions``."""
