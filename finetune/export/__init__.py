"""Merging an adapter into its base: a model folder that every server loads."""
