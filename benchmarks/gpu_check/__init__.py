"""`make gpu-check`: one command that says whether everything works on the GPU at hand, and how fast."""
