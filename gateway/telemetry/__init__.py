"""Metrics, trace context and Prometheus' text format."""
