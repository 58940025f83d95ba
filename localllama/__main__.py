"""``python -m localllama`` is the ``localllama`` command."""

from localllama.cli.main import console

if __name__ == "__main__":
    console()
