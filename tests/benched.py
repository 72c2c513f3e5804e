"""Plans, and the one that tests of the bench share."""

from pathlib import Path

import yaml
from small import SETTINGS

PLAN = {
    "output": "out",
    "data": {"shop": "shop"},
    "models": [
        "popularity",
        {"name": "counts", "settings": {"window": 20}, "space": {"recency": [0.3, 0.6, 0.9]}},
        {"name": "asymrec", "settings": SETTINGS, "space": {"learning_rate": [2e-3, 8e-3]}},
    ],
    "protocols": ["standard", "untied"],
    "seeds": {"standard": [0, 1], "untied": [0]},
    "tuning": {"trials": 2},
    "jobs": 2,
    "headline": {"model": "counts", "rivals": ["popularity", "asymrec"]},
}


def written(folder: Path, **plan: object) -> Path:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(plan, sort_keys=False), encoding="utf-8")
    return path


def planned(folder: Path, **more: object) -> Path:
    return written(folder, **{key: value for key, value in (PLAN | more).items() if value is not None})
