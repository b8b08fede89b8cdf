"""What the tiny configs' networks and methods are made smaller by, where they have the key."""

MODEL = {"depth": 1, "base_width": 8, "feature_block": 1}
METHOD = {"queue_size": 512, "target_blocks": 1, "early_blocks": 1}
