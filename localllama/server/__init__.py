"""The HTTP server: Ollama's, OpenAI's and Anthropic's APIs over the shared workers.

Knows no llama.cpp and draws nothing; asyncio lives here, the rooms below are plain threads.
"""
