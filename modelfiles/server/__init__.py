"""A live Ollama server: create a model on it, and prove that it does what its Modelfile says."""
