"""The start of an engine that is ours: what its log says of it, its main module, its first request."""
