"""Peak GPU memory of a recipe, estimated from headers, and what would make it fit."""
