"""Several gateway processes on one port: workers, and their parent, which has engines, queue and keys' accounts."""
