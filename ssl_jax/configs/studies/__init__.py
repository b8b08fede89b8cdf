"""Those of the studies: `--config label_efficiency`."""
