"""One request on its way: from the socket to an engine and its answer back."""
