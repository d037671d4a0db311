"""What operating the switch needs: keys, logs, audit, metrics, health. Nothing decides money."""
