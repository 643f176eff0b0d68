"""The command `demo`: a small bank, and clients of all kinds for it. Imports nothing: `service` is also a program."""
