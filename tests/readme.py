"""Run the README's Python: every block below ``<!-- ci: run -->``, each as a script of its own in an empty folder.

``python tests/readme.py README.md`` names the line of the first block that fails, and exits with its status.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

BLOCK = re.compile(r"^<!-- ci: run -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def main(path: str) -> int:
    text = Path(path).read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    marks = text.count("<!-- ci: run -->")
    if not blocks or len(blocks) != marks:
        print(f"{path}: {marks} lines '<!-- ci: run -->', {len(blocks)} of them just above a ```python block")
        return 1
    for block in blocks:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "block.py").write_text(block[1], encoding="utf-8")
            done = subprocess.run([sys.executable, "block.py"], cwd=folder)
        if done.returncode:
            print(f"{path}:{text.count(chr(10), 0, block.start(1)) + 1}: this block failed with {done.returncode}")
            return 1
    print(f"{len(blocks)} blocks of {path} ran")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
