"""Draw loss, kNN and collapse curves of a pre-training run.

usage: python docs/pictures/draw_run_curves.py RUN OUT.svg
"""

import math
import sys
from pathlib import Path

from chess_cxr.api import read_metrics
from chess_cxr.report.plots import draw_training_curves
from chess_cxr.training.run import read_run_config

run, out = Path(sys.argv[1]), Path(sys.argv[2])
queue = read_run_config(run)["method"]["queue"]
out.write_text(draw_training_curves(read_metrics(run), math.log(1 + queue)), "utf-8")
