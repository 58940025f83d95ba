"""A loaded model: the worker process that holds it and the client that talks to it."""
