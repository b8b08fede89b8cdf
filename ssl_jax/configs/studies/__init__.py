"""The configs of the studies, found by name: `--config label_efficiency`."""
