"""Run the `gateway` command, also as `python -m gateway`.

`run` takes over signals before the imports, which take 0.3 s. The commands that only print leave them to the system:
Ctrl-C and a closed pipe (`gateway routes | head -1`) end the process without a traceback.
"""

import signal
import sys

from gateway import memory
from gateway.signals import Signals


def main() -> int:
    """Run the command and return its exit code."""
    signals = None
    if sys.argv[1:2] == ["run"]:
        signals = Signals()
    else:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    memory.collect_rarely()
    from gateway import cli  # noqa: PLC0415 (see above)

    return cli.main(signals=signals)


if __name__ == "__main__":
    sys.exit(main())
