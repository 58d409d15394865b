"""PEFT adapters as other engines want them."""
