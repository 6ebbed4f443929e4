"""Draws the pictures of the course: each chapter is executed as it stands, and what it saves is kept.

A picture says in its metadata of which code it is, so that a test sees one that was not drawn anew.

python docs/course/make.py             all chapters, some minutes
python docs/course/make.py 06 24       these
"""

import hashlib
import os
import pathlib
import re
import sys
import tempfile

os.environ["MPLBACKEND"] = "Agg"  # no windows

HERE = pathlib.Path(__file__).parent
CHAPTERS = sorted(HERE.glob("[0-9][0-9]_*.md"))
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(path: pathlib.Path) -> list[str]:
    """The Python blocks of a page, in order."""
    return _BLOCK.findall(path.read_text(encoding="utf-8"))


def mark(path: pathlib.Path) -> str:
    """What a picture says of the code that drew it: a sum over the blocks of its chapter, up to that which saves it."""
    code = blocks(path)
    last = max(i for i, block in enumerate(code) if ".savefig(" in block)
    return hashlib.sha256("\n".join(code[: last + 1]).encode()).hexdigest()[:16]


def drawn(path: pathlib.Path) -> None:
    """Execute a chapter in a folder of its own, and keep its picture."""
    import matplotlib.pyplot as plt
    from PIL import Image, PngImagePlugin

    before = pathlib.Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            names = {"__name__": path.stem}
            for block in blocks(path):
                exec(compile(block, path.name, "exec"), names)
            about = PngImagePlugin.PngInfo()
            about.add_text("Source", mark(path))
            picture = f"{path.stem}.png"
            Image.open(picture).save(HERE / "pictures" / picture, pnginfo=about, optimize=True)
        finally:
            os.chdir(before)
            plt.close("all")


def main() -> None:
    """The chapters of these numbers, or all of them."""
    wanted = sys.argv[1:]
    unknown = [number for number in wanted if not any(path.name.startswith(f"{number}_") for path in CHAPTERS)]
    if unknown:
        sys.exit(f"expected numbers of chapters, such as 06, got {', '.join(unknown)}")
    for path in CHAPTERS:
        if not wanted or path.name[:2] in wanted:
            drawn(path)
            print(path.name)


if __name__ == "__main__":
    main()
