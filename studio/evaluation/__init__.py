"""Scores and answers of evaluations: the wall, significance, what goes back to the data."""
