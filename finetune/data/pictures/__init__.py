"""Folders of pictures without a data file: captions in files beside them, or classes by the folders they are in."""
