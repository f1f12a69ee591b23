"""Devices on remote machines: transports, remote folders, the agent, phones."""
