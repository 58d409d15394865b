"""From a checked request to tokens: the loaded model, prompts, sampling, and batches of transformers' `generate`.

`batcher` is the entry: it makes a `RunningSequence` for each choice of a request, puts them on the `waiting_list`, and
generates batch after batch in one thread.
"""
