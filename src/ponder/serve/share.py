"""A trace as one HTML file that replays it anywhere, from a disk too: `python -m ponder.serve.share TRACE [FILE]`.

The file holds the page's own style and scripts and the trace as data. Its policy admits these scripts alone, by their digest, and no network.
"""

import base64
import hashlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from ponder.core.errors import BadField, PonderError

PAGE = Path(__file__).parent / "page"
MODULES = ("dom.js", "trace.js", "layout.js", "tree.js", "cost.js", "player.js", "pane.js", "shared.js")  # each after what it imports
IMPORT = re.compile(r"^import \{[^}]*\} from \"\./([\w.]+)\";\n", re.MULTILINE)
DOCUMENT = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>ponder: a run</title>
<style>{style}</style>
</head>
<body>
<main class="shared"><section id="stage" class="stage" aria-label="Run"></section></main>
<script type="application/json" id="trace">{trace}</script>
<script type="module">{script}</script>
</body>
</html>
"""


def document(trace: str) -> str:
    """One self-contained page that replays `trace`, lines as `ponder ask --trace FILE` writes them."""
    script, style = bundled(), (PAGE / "style.css").read_text(encoding="utf-8")
    policy = f"default-src 'none'; script-src '{digest(script)}'; style-src '{digest(style)}'; base-uri 'none'; form-action 'none'"
    data = "[" + ",\n".join(inert(line) for line in trace.splitlines() if line.strip()) + "]"
    return DOCUMENT.format(policy=policy, style=style, trace=data, script=script)


def bundled() -> str:
    """The page's modules as one: each once, without its imports and exports. Their top-level names all differ."""
    parts = []
    for name in MODULES:
        text = (PAGE / name).read_text(encoding="utf-8")
        parts.append(re.sub(r"^export ", "", IMPORT.sub("", text), flags=re.MULTILINE))
    return "\n" + "\n".join(parts)


def inert(line: str) -> str:
    """A line as a JSON string that no HTML parser mistakes for markup."""
    quoted = '"' + line.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return quoted.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0, or 2 for a caller's mistake."""
    try:
        if len(arguments) not in (1, 2):
            raise BadField("usage: python -m ponder.serve.share TRACE [FILE]")
        source = Path(arguments[0])
        target = Path(arguments[1]) if len(arguments) == 2 else source.with_suffix(".html")
        target.write_text(document(source.read_text(encoding="utf-8")), encoding="utf-8")
    except (PonderError, OSError, UnicodeDecodeError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
