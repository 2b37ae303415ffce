"""Validation during training: the one evaluator on the validation split, into the run's log."""

from pathlib import Path

import numpy as np
import torch

from eval.evaluator import EvalSettings, check_complete, evaluate, gather_scores
from eval.metrics import summarise
from eval.visualise import strip, write_prediction
from utils.device import Ranks
from utils.prepared import PreparedSplit

PICTURES = 8  # validation samples that are drawn, evenly spaced over the split


class Validation:
    """Evaluate a model on `split`; log the metrics and, of a fixed set of samples, pictures.

    Args: pictures, a folder for them, or None for TensorBoard alone.
    """

    def __init__(
        self, split: PreparedSplit, settings: EvalSettings, ranks: Ranks, log, pictures: Path | None, workers: int
    ):
        self.split, self.settings, self.ranks, self.log = split, settings, ranks, log
        self.pictures, self.workers = pictures, workers
        self.shown = set(np.linspace(0, len(split) - 1, min(PICTURES, len(split))).astype(int).tolist())

    def __call__(self, model: torch.nn.Module, step: int) -> dict:
        """Metrics of the whole split (see `metrics.summarise`), the same on each rank."""

        def show(prediction) -> None:
            picture = np.asarray(strip(prediction, self.settings.threshold))
            self.log.picture(f"val/{prediction.score.name}", step, picture)
            if self.pictures:
                folder = self.pictures / str(step)
                folder.mkdir(parents=True, exist_ok=True)
                write_prediction(folder, prediction, self.settings.threshold)

        scores = evaluate(
            model,
            self.split,
            self.settings,
            self.ranks.device,
            rank=self.ranks.rank,
            world=self.ranks.world,
            num_workers=self.workers,
            on_sample=show,
            shown=self.shown,
            progress=self.ranks.is_main,
        )
        scores = gather_scores(scores)
        check_complete(scores, self.split)
        metrics = summarise(scores, self.split.dataset)
        prec = {f"Prec@{x}": value for x, value in metrics["prec"].items()}
        self.log.record("val", step, {"oIoU": metrics["oIoU"], "mIoU": metrics["mIoU"], **prec})
        return metrics
