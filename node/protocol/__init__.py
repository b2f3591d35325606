"""The protocol, pure: messages, links and the round machines. No socket, no clock, no torch, no TenSEAL."""
