"""Real local servers and tiny models that stand in for the world in tests."""
