"""`netvlad-deploy` and `python -m netvlad_deploy`: what is right before anything else is imported."""

import os
import signal
import sys

INTERRUPTED = 130


def main() -> None:
    """Run the command line: in UTF-8 whatever the locale says, and Ctrl-C is one line from the first import on.

    Native libraries take the names of files in UTF-8 only.
    """
    if sys.getfilesystemencoding() != "utf-8":
        os.execv(sys.executable, [sys.executable, "-Xutf8", *sys.orig_argv[1:]])  # noqa: S606
    signal.signal(signal.SIGINT, _interrupt)
    from netvlad_deploy.cli import main as run

    try:
        run()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done and said


def _interrupt(*_: object) -> None:
    """End: nothing has been begun yet."""
    os.write(2, b"error: interrupted\n")
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
