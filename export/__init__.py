"""From a checkpoint to a bundle: graphs declared, weights bound, files written."""
