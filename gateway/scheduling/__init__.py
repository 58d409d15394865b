"""Who runs, who waits, who is refused, and which replica gets a request."""
