"""Rows as plain Python, from files, hubs and URLs, in every layout that is read."""
