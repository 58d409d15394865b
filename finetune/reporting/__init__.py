"""Logs, plots and pages of runs."""
