"""The reader of model folders that the whole project uses: configs, safetensors and GGUF headers, chat templates."""
