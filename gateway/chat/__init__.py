"""`lensmith chat`: a conversation with a model, an adapter or a server in the terminal, pictures included."""
