"""`lensmith check`: what a run would do, before it costs anything."""
