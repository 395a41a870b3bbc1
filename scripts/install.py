"""`python install.py LOCK pip...` runs `pip... install -r LOCK` behind one progress line. Standard library only.

pip's own words are shown only when it fails.
"""

import re
import subprocess
import sys
import threading
import time
from pathlib import Path

BAR = 30  # columns


class Line:
    """One line that is drawn again every half second on a terminal; elsewhere, a new line now and then."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.what = total, 0, "looking"
        self.due = 20  # packages at which the next line is printed where it cannot be drawn again
        self.start = time.monotonic()
        self.is_live = sys.stdout.isatty()

    def read(self, words: str) -> None:
        """Takes one line of pip's output into account."""
        if match := re.match(r"(?:Collecting|Processing|Requirement already satisfied:) (\S+)", words):
            self.done, self.what = min(self.total, self.done + 1), re.split(r"[=<>~!;(]", match[1].rsplit("/", 1)[-1])[0][:40]
        elif match := re.match(r" +Downloading (\S+?)-\S+ (\(.*\))", words):
            self.what = f"{match[1]} {match[2]}"[:40]
        elif words.startswith("Installing collected packages"):
            self.done, self.what = self.total, "unpacking"
        else:
            return
        if not self.is_live and self.done >= self.due:
            self.due += 20
            print(f"   {self.text()}", flush=True)

    def text(self) -> str:
        full = BAR * self.done // max(1, self.total)
        return f"[{'#' * full}{'.' * (BAR - full)}] {self.done}/{self.total}  {time.monotonic() - self.start:3.0f} s  {self.what}"

    def draw_until(self, stop: threading.Event) -> None:
        while self.is_live and not stop.wait(0.5):
            print(f"\r   {self.text():<90}", end="", flush=True)


def main(lock: str, pip: list[str]) -> int:
    line, stop, log = Line(Path(lock).read_text().count("==")), threading.Event(), []
    drawing = threading.Thread(target=line.draw_until, args=(stop,), daemon=True)
    drawing.start()
    command = [*pip, "install", "--progress-bar", "off", "-r", lock]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as process:
        for words in process.stdout:
            log.append(words)
            line.read(words)
    stop.set()
    drawing.join()
    line.what = "done" if process.returncode == 0 else "failed"
    print(f"{chr(13) if line.is_live else ''}   {line.text():<90}", flush=True)
    if process.returncode:
        print("".join(log[-40:]), file=sys.stderr)
    return process.returncode


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1], sys.argv[2:]))
    except KeyboardInterrupt:
        sys.exit(130)
