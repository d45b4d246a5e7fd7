"""`chess-cxr doctor`: check this machine, and advise on what does not work."""
