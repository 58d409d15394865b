"""Gateways that the studio starts: what can be served, `lensmith serve` as a job, and whether it answers."""
