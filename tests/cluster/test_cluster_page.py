"""The commands on docs/cluster.md that need a cluster are those in the files, or run what was written."""

import contextlib
import re
import shlex
import sys
from pathlib import Path

from mhimdist.commands.main import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "cluster.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [line.partition("  #")[0].strip() for block in BLOCKS for line in block.splitlines() if line]


def test_the_batch_script_is_written_and_is_what_is_submitted(tmp_path, monkeypatch):
    (command,) = [c for c in COMMANDS if c.startswith("mhimdist cluster slurm ")]
    assert f"sbatch {shlex.split(command)[-1]}" in COMMANDS
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    with contextlib.chdir(tmp_path):
        main()
        written = Path("sweep.sbatch").read_text()
    assert "#SBATCH --partition=gpu\n" in written
    assert "\ncommand=(python jobs/tune_c16.py --data /shared/shards/c16)\n" in written


def test_the_commands_for_kubernetes_and_the_image_are_those_in_the_files():
    def comments(name: str) -> list[str]:
        lines = (ROOT / name).read_text().splitlines()
        return [line.removeprefix("#   ").partition("    ")[0] for line in lines if line.startswith("#   ")]

    assert [c for c in COMMANDS if c.startswith("kubectl")] == comments("cluster/kuberay.yaml")
    images = [c.split()[:3] for c in COMMANDS if c.startswith(("docker", "apptainer"))]
    assert images == [c.split()[:3] for c in comments("Dockerfile")]


def test_every_file_of_a_cluster_is_on_the_page():
    for path in (ROOT / "cluster").iterdir():
        assert f"(../cluster/{path.name})" in PAGE
