"""Records against what is expected of them."""
