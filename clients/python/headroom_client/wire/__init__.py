"""Pure translation between values and bytes: statuses in a file per protocol, bodies per pipeline and protocol."""
