"""One module a version of the tables. A published one never changes."""
