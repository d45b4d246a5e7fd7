import subprocess
import sys
from pathlib import Path

import chess_cxr.evaluation


def test_evaluation_runs_without_loading_torch() -> None:
    modules = [path.stem for path in Path(chess_cxr.evaluation.__file__).parent.glob("*.py") if path.stem != "__init__"]
    assert "intervals" in modules
    imports = "; ".join(f"import chess_cxr.evaluation.{module}" for module in modules)
    code = f"{imports}; import sys; print(sorted({{'torch', 'timm', 'lance'}} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
