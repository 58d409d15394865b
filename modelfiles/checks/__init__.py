"""`lensmith modelfile doctor` and `lint`: the rules, and what they find."""
