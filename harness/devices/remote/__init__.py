"""Devices on other machines: transports, folders there, the agent, phones."""
