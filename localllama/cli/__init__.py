"""The command line: `main` finds commands, one file holds each, `output` prints."""
