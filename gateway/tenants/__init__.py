"""API keys and what their holders may use: authentication, limits, limits shared in Redis, `lensmith keys`."""
