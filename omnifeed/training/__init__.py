"""From the training set to a checkpoint: arrays, batches, the joint loss, the loop, calibration."""
