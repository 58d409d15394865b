"""`lensmith doctor`: what keeps a model folder from being served on this machine."""
