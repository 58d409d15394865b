"""`lensmith modelfile`: its commands, each imported when it runs."""
