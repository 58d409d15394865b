"""Ollama's Modelfile language and Go's text/template, read and written as Ollama does."""
