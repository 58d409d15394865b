"""The base model and the weights that training adds to it or changes."""
