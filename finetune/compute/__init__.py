"""A training step's arithmetic written for speed: same results as the models' own code within rounding."""
