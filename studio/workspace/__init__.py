"""The workspace folder: its layout, names, and paths that stay inside it."""
