"""Greedy answers to a dataset, by a local model or an endpoint, and their scores."""
