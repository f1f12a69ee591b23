"""The devices that come with harness, and the runtimes that they use."""
