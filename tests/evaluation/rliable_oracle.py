"""Estimates of rliable for the matrices in a .npz file, as JSON; runs in `.venv-rliable` (`make rliable`)."""

import json
import sys

import numpy as np
from rliable import library, metrics

REPS, SLOW_REPS = 2_000, 400
matrices = np.load(sys.argv[1])
ours, theirs, one_task, thresholds = (matrices[name] for name in ("ours", "theirs", "one_task", "thresholds"))
POINTS = {
    "mean": metrics.aggregate_mean,
    "median": metrics.aggregate_median,
    "iqm": metrics.aggregate_iqm,
    "optimality_gap": metrics.aggregate_optimality_gap,
}


def ends(scores, function, method="percentile", reps=REPS):
    np.random.seed(0)  # what rliable draws with
    _, intervals = library.get_interval_estimates(
        {"it": scores}, lambda *draw: np.atleast_1d(function(*draw)), method=method, reps=reps
    )
    return intervals["it"].tolist()


profile = library.score_distributions
print(
    json.dumps(
        {
            "points": {name: float(function(ours)) for name, function in POINTS.items()},
            "improvement": float(metrics.probability_of_improvement(ours, theirs)),
            "profile": profile(ours, thresholds).tolist(),
            "ends": {name: ends(ours, function) for name, function in POINTS.items()},
            "improvement_ends": ends([ours, theirs], metrics.probability_of_improvement, reps=SLOW_REPS),
            "profile_ends": ends(ours, lambda draw: profile(draw, thresholds)),
            "bca_ends": {name: ends(one_task, POINTS[name], "bca") for name in POINTS if name != "median"},
        }
    )
)
