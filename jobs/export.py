#!/usr/bin/env python
"""Export a run's trained networks: safetensors, ONNX, a model card, and the one module that loads them."""

from mhimdist.export.options import Export
from mhimdist.export.run import export_model
from mhimdist.foreign_text import say
from mhimdist.process import run


def main() -> None:
    job = Export.from_command_line(about=__doc__)
    folder = export_model(job.run, job.out, member=job.member, candidate=job.candidate, onnx=job.onnx)
    say(f"exported: {', '.join(sorted(path.name for path in folder.iterdir()))} in {folder}")


if __name__ == "__main__":
    run(main)
