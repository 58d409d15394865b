"""The stage folder that `ollama create` reads, and the GGUF route through llama.cpp's converter."""
