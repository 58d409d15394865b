"""Pure functions on an engine's bytes: server-sent events, stop strings, log-probabilities, whole completions."""
