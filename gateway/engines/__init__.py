"""Engines: what they are, how they are started and supervised, how they are called."""
