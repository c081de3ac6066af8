"""The bench: from a printed number to a verdict. The library below never imports it."""
