"""A small part of the demo's dataset as a folder that somebody would upload."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from examples.easy_vqa import SHAREGPT

TRAIN, TEST = 600, 60  # questions


def write_subset(folder: Path) -> Path:
    """images/, train.json, test.json and dataset_info.json with the first questions of easy-VQA's splits."""
    import easy_vqa

    splits = {
        "train": (easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths(), TRAIN),
        "test": (easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths(), TEST),
    }
    for split, ((questions, answers, image_ids), paths, count) in splits.items():
        pictures = folder / "images" / split
        pictures.mkdir(parents=True)
        rows = []
        for question, answer, image_id in list(zip(questions, answers, image_ids, strict=True))[:count]:
            shutil.copyfile(paths[image_id], pictures / f"{image_id}.png")
            turns = [{"from": "human", "value": f"<image>{question}"}, {"from": "gpt", "value": answer}]
            rows.append({"conversations": turns, "images": [f"images/{split}/{image_id}.png"]})
        (folder / f"{split}.json").write_text(json.dumps(rows))
    info = {split: {"file_name": f"{split}.json", **SHAREGPT} for split in splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder
