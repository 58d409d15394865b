#!/usr/bin/env bash
# Expected: a string in a JSON Lines file stays that string in `datasets`. JSON has no dates, so "2024-01-31" in
# quotes is text.
#
# What happens: if every value of a field looks like an ISO date, the field becomes timestamp[s] and each row hands
# out a datetime. Text made from it reads "2024-01-31 00:00:00". One answer that is no date in the same file ("not
# stated") and all of them stay text, so the type of the column depends on which rows happen to lie in the file. It
# reaches into nested messages, too. Nothing is said, and nothing fails.
#
# Versions: datasets 5.2.0, pyarrow 26.0.1, Python 3.11.
#
# Why it matters: "what is the date on this invoice?" is a common task for a vision-language model. A template or
# f-string puts " 00:00:00" behind every target, the model learns to write a time that is on no invoice, and an
# exact-match score against the original file is 0. A validation split with dates only gets another type than the
# training split with mixed answers. The obvious remedy, features that say "string", does not help: the timestamp is
# made first and then written as text, time and all. Reading the file with json and Dataset.from_list keeps it.
#
# Source: Apache Arrow's documentation of the JSON reader ("Automatic Type Inference": strings of the kind
# YYYY-MM-DD become timestamp[s]); datasets 5.2.0 hands each block of a JSON Lines file to that reader
# (packaged_modules/json/json.py).
#
# Output seen:
#   dates only       -> timestamp[s]: the target text is '2024-01-31 00:00:00'
#   one 'not stated' -> string: the target text is '2024-01-31'
#   inside messages  -> timestamp[s]: the target text is '2024-01-31 00:00:00'
#   declared string  -> string: the target text is '2024-01-31 00:00:00'
#   from_list        -> string: the target text is '2024-01-31'
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq datasets==5.2.0 pyarrow==26.0.1
cd "$work"
HF_HOME="$work/hf" HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PY'
import json
import sys

import datasets

datasets.disable_progress_bars()


def load(name, rows, features=None):
    with open(f"{name}.jsonl", "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return datasets.load_dataset("json", data_files=f"{name}.jsonl", split="train", features=features)


dates = [{"question": "date?", "answer": day} for day in ("2024-01-31", "2024-02-01")]
mixed = [*dates, {"question": "date?", "answer": "not stated"}]
chat = [{"messages": [{"role": "assistant", "content": row["answer"]}]} for row in dates]
text = datasets.Features({"question": datasets.Value("string"), "answer": datasets.Value("string")})

alone, beside, nested, told = load("dates", dates), load("mixed", mixed), load("chat", chat), load("told", dates, text)
listed = datasets.Dataset.from_list(dates)
seen = {
    "dates only": (alone.features["answer"].dtype, str(alone[0]["answer"])),
    "one 'not stated'": (beside.features["answer"].dtype, str(beside[0]["answer"])),
    "inside messages": (nested.features["messages"].feature["content"].dtype, str(nested[0]["messages"][0]["content"])),
    "declared string": (told.features["answer"].dtype, str(told[0]["answer"])),
    "from_list": (listed.features["answer"].dtype, str(listed[0]["answer"])),
}
late = "2024-01-31 00:00:00"
changed, declared, kept = ("timestamp[s]", late), ("string", late), ("string", "2024-01-31")
if list(seen.values()) != [changed, kept, changed, declared, kept]:
    sys.exit(f"The behaviour has changed: date strings are now read as {seen}.")
for name, (kind, target) in seen.items():
    print(f"{name:<16} -> {kind}: the target text is {target!r}")
PY
