"""The forward and backward pass of a micro-batch."""
