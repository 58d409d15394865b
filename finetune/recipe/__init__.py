"""Recipes: the schema, its reader, the wording of mistakes, and the page that documents the keys."""
