"""Reads model folders and writes what Ollama needs. Pure Python: configs and tensor headers, never weights.

The parts that other packages use: `folder.ModelFolder`, `plan.make_plan`, `stage.write_stage`, `doctor.check_folder`,
`lint.lint`, `push.push` and `verify.verify`.
"""
