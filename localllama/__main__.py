"""``python -m localllama`` is the ``localllama`` command."""

import sys

from localllama.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
