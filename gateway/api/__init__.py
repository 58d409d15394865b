"""What clients may send, and the translation of other APIs into chat completions."""
