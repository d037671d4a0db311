"""What happens to an operation: transition tables and effects. No sockets, no clock, no tasks."""
