"""Chats to token ids, labels and positions, with a proof that they are the model's own."""
