"""Reads model folders and writes what Ollama needs. Pure Python: configs and tensor headers, never weights.

The rooms, each importing only those before it:

    folder    reads a model folder: configs, safetensors and GGUF headers, chat template (gateway and finetune use it)
    images    pictures upright and in 8-bit RGB, and the size that a processor gives them
    version   of this software, installed or not
    adapter   an adapter in the form that LMDeploy takes
    language  Ollama's Modelfile language and Go's text/template
    ollama    what Ollama does with each architecture: image sizes, prompts, repairs, the plan of a Modelfile
    checks    `doctor` and `lint`: the table of rules and what checks them
    server    a live Ollama: create a model on it, and prove that it does what its Modelfile says
    staging   the folder that `ollama create` reads, and the GGUF route
    cli       `lensmith modelfile`
"""


def counted(count: int, one: str, many: str = "") -> str:
    """A number with its noun: "1 row", "1,204 rows".

    one, many: what stands after 1 and after any other number; without `many`, `one` with an s.
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"
