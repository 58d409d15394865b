"""Sockets and ASGI: connections, bodies, disconnects, middleware and responses. Knows nothing of models."""
