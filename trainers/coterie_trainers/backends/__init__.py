"""Where policies are served and trained: one package a backend, found through the entry point ``coterie.backends``."""
