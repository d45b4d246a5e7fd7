"""`python -m chess_cxr`, the form that `torchrun -m` needs."""

from chess_cxr.cli import main

if __name__ == "__main__":
    main()
