"""Floor 0: what everything else stands on, and nothing that needs torch to be imported."""
