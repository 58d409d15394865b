"""What differs between families of models: forward pass, batches, generation."""
