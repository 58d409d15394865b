"""Who may use the studio: login, sessions, cross-site requests, the Host header, response headers."""
