"""Pictures as every program here sees them: upright 8-bit RGB, and the size that a Qwen-VL processor gives them."""
