"""The GPUs that models are trained and served on, by name."""
