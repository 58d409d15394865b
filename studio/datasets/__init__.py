"""Datasets of the workspace: uploads, versions, thumbnails, filters, duplicates."""
