"""Spans from any OpenTelemetry SDK or collector."""
