"""Commands: parse, call, print where."""

import signal
import sys

if sys.argv[0] == "-m" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # `python -m jobs.<name>` now imports for seconds, and Ctrl-C has nothing to say of where.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def heed_interrupts() -> None:
    """Has Ctrl-C raise KeyboardInterrupt from here on, where importing this has undone that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
