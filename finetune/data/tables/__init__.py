"""Rows in memory-mapped Arrow files, made by several processes and kept by the content that they came from."""
