"""Whole runs of both distillations and of finetuning in one process: started by `test_runs`.

    python -m tests.training.unimodal.runs JOBS.json

JOBS.json: a list of [kind, arguments of the launcher], or ["replace", [new file, file]]; prints what each
says, and "failed: ..." for an `SSMKEError`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from ssmke.errors import SSMKEError
from ssmke.recipes import parse_finetuning
from ssmke.training.launch import launch
from ssmke.training.loop import Outcome
from ssmke.training.pretrain import pretrain
from ssmke.training.ranks import Placement
from ssmke.training.unimodal.images import distil_images
from ssmke.training.unimodal.recipes import parse_image, parse_text
from ssmke.training.unimodal.texts import distil_texts


def main(jobs: Path) -> None:
    outcome: Outcome | None = None

    def all_of_them(placement: Placement) -> Outcome:
        nonlocal outcome
        for kind, argv in json.loads(jobs.read_text()):
            print(f"== {' '.join(argv[-4:])}", flush=True)
            try:
                if kind == "replace":
                    shutil.copyfile(*argv)
                elif kind == "image":
                    image = parse_image(argv)
                    outcome = distil_images(image.recipe, image.deepspeed_config, placement)
                elif kind == "text":
                    text = parse_text(argv)
                    outcome = distil_texts(text.recipe, text.deepspeed_config, placement)
                else:
                    finetuning = parse_finetuning(argv)
                    outcome = pretrain(finetuning.recipe, finetuning.deepspeed_config, placement)
            except SSMKEError as error:
                print(f"failed: {error}", flush=True)
        assert outcome is not None
        return outcome

    sys.exit(launch(all_of_them, os.environ))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
