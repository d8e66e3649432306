"""The commands of docs/own_slides.md, in the order of the page."""

import re

from job_scripts import ROOT

PAGE = (ROOT / "docs" / "own_slides.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
SHARDS = [command for command in COMMANDS if command.startswith("mhimdist shard ")]
"""One per tool, CLAM first."""
AFTER = [command for command in COMMANDS if command not in SHARDS]
"""What follows for everyone."""
