"""Made-up boxes in the JSON of COCO and LVIS, the same on every machine."""

from __future__ import annotations

import random
from typing import Any

Json = dict[str, Any]


def made_up(
    seed: int, *, images: int = 8, labels: int = 5, most: int = 12, is_lvis: bool = False
) -> tuple[Json, list[Json]]:
    """Drawn boxes and results of COCO's form: near ones, wrong ones, crowds, equal scores, ids with gaps.

    `random.Random` gives the same numbers with every Python.
    """
    chance = random.Random(seed)
    numbers = sorted(chance.sample(range(1, 1000), images), key=lambda _: chance.random())
    categories = chance.sample(range(1, 100), labels)
    drawn: list[Json] = []
    results: list[Json] = []
    for number in numbers:
        for _ in range(chance.randrange(most)):
            side = chance.choice((8, 40, 150))
            box = [
                *(300 * chance.random() for _ in "xy"),
                *(side * (0.5 + chance.random()) for _ in "wh"),
            ]
            category = chance.choice(categories)
            drawn.append(
                {
                    "id": len(drawn) + 1,
                    "image_id": number,
                    "category_id": category,
                    "bbox": box,
                    "area": box[2] * box[3] * chance.choice((1.0, 0.6)),
                    "iscrowd": int(not is_lvis and chance.random() < 0.1),
                }
            )
            for _ in range(chance.randrange(3)):
                moved = [0.2 * (chance.random() - 0.5) * side for _ in box]
                results.append(
                    {
                        "image_id": number,
                        "category_id": category
                        if chance.random() < 0.8
                        else chance.choice(categories),
                        "bbox": [
                            *(edge + by for edge, by in zip(box[:2], moved[:2], strict=True)),
                            *(
                                max(1.0, edge + by)
                                for edge, by in zip(box[2:], moved[2:], strict=True)
                            ),
                        ],
                        "score": round(chance.random(), chance.choice((1, 4))),
                    }
                )
    chance.shuffle(results)
    truth: Json = {
        "images": [
            {"id": number, "file_name": f"{number:06}.jpg", "width": 480, "height": 480}
            for number in numbers
        ],
        "categories": [{"id": number, "name": f"thing_{number}"} for number in categories],
        "annotations": drawn,
    }
    if is_lvis:
        for category in truth["categories"]:
            category["frequency"] = chance.choice("rcf")
        for image in truth["images"]:
            there = {one["category_id"] for one in drawn if one["image_id"] == image["id"]}
            image["neg_category_ids"] = [
                number for number in categories if number not in there and chance.random() < 0.5
            ]
            image["not_exhaustive_category_ids"] = [
                number for number in sorted(there) if chance.random() < 0.3
            ]
    return truth, results
