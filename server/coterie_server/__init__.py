"""The server: the store over HTTP, OTLP intake, the model gateway. ``coterie serve`` starts it."""
