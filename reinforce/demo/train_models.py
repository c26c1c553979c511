"""Makes the demo's models from nothing but generated scenes: two CLIP teachers and a captioner.

    python -m reinforce.demo.train_models --output reinforce/demo/models

About 35 minutes on one core, without a network. Trained on right captions only, on scenes whose seeds no demo data
uses, under the crops and RandAugment of a build, so that the embeddings of augmented views mean something.
"""

import argparse
import random
from pathlib import Path

import torch

from reinforce.demo import MODELS
from reinforce.demo.measure import report
from reinforce.demo.train_captioner import train_captioner
from reinforce.demo.train_teacher import TEACHERS, train_teacher
from reinforce.demo.training import paint_training_data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=MODELS)
    parser.add_argument("--num-images", type=int, default=12_000)
    parser.add_argument("--only", choices=[*TEACHERS, "demo-captioner"], action="append")
    options = parser.parse_args()
    torch.set_num_threads(1)
    wanted = options.only or [*TEACHERS, "demo-captioner"]
    data = paint_training_data(options.num_images)
    for name in wanted:
        random.seed(0)
        torch.manual_seed(0)
        if name in TEACHERS:
            train_teacher(name, TEACHERS[name], data, options.output / name)
        else:
            train_captioner(data, options.output / name)
    report(options.output)


if __name__ == "__main__":
    main()
