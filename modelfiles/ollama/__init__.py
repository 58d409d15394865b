"""What Ollama makes of a model folder: families, versions, prompts, image tokens, and the lines of a Modelfile."""
