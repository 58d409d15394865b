"""The training form: a recipe made of it, and what it would need before it starts."""
