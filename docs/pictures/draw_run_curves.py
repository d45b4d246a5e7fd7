"""Draw loss, kNN and collapse curves of a pre-training run.

usage: python docs/pictures/draw_run_curves.py RUN PREFIX

Writes PREFIX_loss.svg, PREFIX_knn.svg and PREFIX_collapse.svg.
"""

import math
import sys
from pathlib import Path

from chess_cxr.pretraining.page import draw_run_curves
from chess_cxr.pretraining.runs import read_metrics
from chess_cxr.training.run import read_run_config

run, prefix = Path(sys.argv[1]), sys.argv[2]
queue = read_run_config(run)["method"]["queue"]
figures = draw_run_curves(read_metrics(run), math.log(1 + queue))
for name in ("loss", "knn", "collapse"):
    Path(f"{prefix}_{name}.svg").write_text(figures[name], "utf-8")
