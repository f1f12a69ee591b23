"""Models as files that other runtimes open."""
