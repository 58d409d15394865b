"""QLoRA of one model on the same rows by Lensmith and its peers, on one GPU, in turns."""
