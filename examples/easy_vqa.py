"""Turns easy-VQA (PyPI package `easy-vqa`, MIT, by Victor Zhou) into ShareGPT rows with a dataset_info.json.

    python -m examples.easy_vqa data/easy_vqa

4,000 training and 1,000 test pictures of 64 x 64 pixels; 38,575 and 9,673 questions with one-word answers.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

# Columns and tags as LLaMA-Factory's dataset_info.json names them.
SHAREGPT = {"formatting": "sharegpt", "columns": {"messages": "conversations", "images": "images"}}


def write_dataset(folder: Path) -> dict[str, int]:
    """Writes images/, easy_vqa_train.json, easy_vqa_test.json and dataset_info.json; returns rows per split."""
    import easy_vqa

    splits = {
        "train": (easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()),
        "test": (easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()),
    }
    counts = {}
    for split, ((questions, answers, image_ids), image_paths) in splits.items():
        pictures = folder / "images" / split
        pictures.mkdir(parents=True, exist_ok=True)
        for image_id, source in image_paths.items():
            shutil.copyfile(source, pictures / f"{image_id}.png")
        rows = [
            {
                "conversations": [
                    {"from": "human", "value": f"<image>{question}"},
                    {"from": "gpt", "value": answer},
                ],
                "images": [f"images/{split}/{image_id}.png"],
            }
            for question, answer, image_id in zip(questions, answers, image_ids, strict=True)
        ]
        (folder / f"easy_vqa_{split}.json").write_text(json.dumps(rows, indent=1) + "\n")
        counts[split] = len(rows)
    info = {f"easy_vqa_{split}": {"file_name": f"easy_vqa_{split}.json", **SHAREGPT} for split in splits}
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n")
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    counts = write_dataset(parser.parse_args().folder)
    print(", ".join(f"{split}: {rows:,} rows" for split, rows in counts.items()))


if __name__ == "__main__":
    main()
