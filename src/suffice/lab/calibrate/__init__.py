"""suffice calibrate: certifies a threshold by risk control."""
