"""`lensmith verify`: does an engine answer as transformers does with the same weights?"""
