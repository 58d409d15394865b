"""The gateway: an OpenAI-compatible API in front of one or more engines. It never imports torch.

The sub-packages, from the ground up: config, http, telemetry, streaming, tenants, planning, engines, scheduling, media,
api, runtime, proxy. `app.py` puts them together, `server.py` runs the application, `cli.py` is `lensmith serve`.
"""
