"""From a trained model to an immutable bundle, and from a request to the tensors it takes."""
