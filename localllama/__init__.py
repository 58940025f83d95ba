"""localllama: a local LLM runner for the terminal. Importing it costs nothing."""

__version__ = "0.1.0"
