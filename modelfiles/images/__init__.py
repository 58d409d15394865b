"""Pictures as every program here sees them: upright 8-bit RGB, in the size of a Qwen-VL processor."""
